"""Whatever comes in, an answer in OpenAI's error form goes out, and the server lives on."""

from __future__ import annotations

import gzip
import json
import socket
from dataclasses import replace

import pytest

from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.testing import MockModel

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def error_of(response, status):
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"{'a': 1}", b'{"messages": NaN}', b"\xff\xfe", b"[" * 100_000, b"9" * 5000],
)
def test_bodies_that_are_no_object(server, body):
    assert error_of(server.http.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)


def test_nested_too_deeply(server):
    body = '{"messages": [{"role": "user", "content": ' + "[" * 200 + "]" * 200 + "}]}"
    response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert "levels deep" in error_of(response, 400)["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", None), ("messages", []), ("messages", "hello"), ("messages", [1]), ("messages", [{}]),
        ("messages", [{"role": 5, "content": "x"}]), ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]),
        ("temperature", "hot"), ("temperature", -1), ("temperature", True), ("temperature", 1e999),
        ("temperature", 10**400), ("exit_threshold", -(10**400)), ("stop", ["a", ""]),
        ("top_p", 2), ("min_p", -0.1), ("top_k", 1.5), ("top_k", -2), ("repetition_penalty", 0),
        ("max_tokens", 0), ("max_tokens", "7"), ("max_tokens", 1.5), ("n", 0), ("n", 1000), ("seed", "x"),
        ("stop", [""]), ("stop", [1]), ("stop", {"a": 1}), ("stop", ["x"] * 100),
        ("logit_bias", {"x": 1}), ("logit_bias", {"99999": 1}), ("logit_bias", {"1": 500}), ("logit_bias", [1]),
        ("stream", "yes"), ("stream_options", {"include_usage": True}), ("logprobs", 3), ("top_logprobs", 2),
        ("exit_threshold", 1.5), ("loops", 0), ("loops", 5), ("exit", "sometimes"), ("loop_budget", 0.5),
        ("lens", -1), ("exit", "entropy:nan"), ("frequency_penalty", 0.5),
        ("presence_penalty", 1), ("modalities", ["text", "audio"]),
        ("response_format", "json"), ("response_format", {"type": "xml"}), ("response_format", {"type": "json_schema"}),
        ("tools", {}), ("tools", [{"type": "function"}]), ("tools", [{"type": "code"}]), ("tool_choice", "required"),
        ("chat_template_kwargs", {"messages": []}), ("chat_template_kwargs", {"self": 1}), ("model", 5),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(server, field, value):
    error = error_of(
        server.http.post(CHAT, json={**HELLO, field: value} if value != 1e999 else HELLO | {field: 1e308}), 400
    )
    assert error["type"] == "invalid_request_error"
    assert field.split("[")[0] in (error["param"] or "") + error["message"]


def test_fields_exclude_each_other(server):
    assert "exclude" in error_of(server.chat(loops=1, exit_threshold=0.5), 400)["message"]
    assert "differ" in error_of(server.chat(max_tokens=1, max_completion_tokens=2), 400)["message"]
    assert "echo" in error_of(server.complete(echo=True, stream=True), 400)["message"]


def test_unknown_fields_are_named(server):
    error = error_of(server.chat(temprature=0.5), 400)
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    assert "stream_options" in error_of(server.chat(stream=True, stream_options={"x": 1}), 400)["param"]
    assert error_of(server.complete(messages=[]), 400)["param"] == "messages"


@pytest.mark.parametrize(
    "prompt", [None, "", [], [[]], 5, {"a": 1}, ["a", 5], [1, "a"], [[1], "a", 2], [-1], [10**6], [True], ["a"] * 500]
)
def test_prompts_that_are_none(server, prompt):
    assert error_of(server.complete(prompt), 400)["type"] == "invalid_request_error"
    assert error_of(server.http.post("/v1/embeddings", json={"input": prompt}), 400)["type"] == "invalid_request_error"


def test_a_lone_surrogate_is_no_text(server):
    body = '{"messages": [{"role": "user", "content": "\\ud800"}], "\\udfff": 1}'
    headers = {"content-type": "application/json"}
    assert error_of(server.http.post(CHAT, content=body, headers=headers), 400)
    assert error_of(server.http.post(CHAT, content=body.replace(', "\\udfff": 1', ""), headers=headers), 400)


def test_huge_prompts(server):
    for response in (server.chat("hello " * 2000), server.complete("hello " * 2000), server.complete([5] * 3000)):
        assert error_of(response, 400)["code"] == "context_length_exceeded"
    response = server.http.post("/v1/embeddings", json={"input": "hello " * 2000})
    assert error_of(response, 400)["code"] == "context_length_exceeded"
    assert error_of(server.chat("x" * (5 << 20)), 413)


def test_a_body_without_end_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(200):
                client.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            pass  # it hung up: as it should
        else:
            assert client.recv(12) == b"HTTP/1.1 413"
    assert server.chat().status_code == 200


def test_schemas_that_are_none(server):
    def ask(schema):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return error_of(server.chat(response_format=form), 400)

    for schema in (
        {"type": "nothing"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"type": "string", "pattern": "("},
        {"type": 5},
    ):
        error = ask(schema)
        assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert "characters" in ask({"type": "string", "const": "x" * 300_000})["message"]


def test_a_schema_that_explodes_is_refused(server):
    part = {"anyOf": [{"type": "object", "properties": {f"{i}": {"type": "integer"}}} for i in range(3)]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"allOf": [part] * 30}}}
    error_of(server.chat(response_format=form), 400)
    assert server.chat().status_code == 200


def test_a_template_that_fails(serve):
    body = {**HELLO, "chat_template_kwargs": {"bos_token": 5}}
    failing = ChatTemplate("{{ bos_token + 'x' }}{{ messages[0].content }}")
    model = MockModel("never")
    model.text = replace(model.text, template=failing)
    assert "template" in error_of(serve(model).http.post(CHAT, json=body), 400)["message"]


def test_a_message_without_content_is_named(server):
    error = error_of(server.http.post(CHAT, json={"messages": [{"role": "user"}]}), 400)
    assert "messages[0] has no content" in error["message"]


def test_other_paths_methods_and_types(server):
    assert error_of(server.http.get("/v1/nothing"), 404)["type"] == "not_found_error"
    assert error_of(server.http.get(CHAT), 405)
    assert error_of(server.http.post("/health"), 405)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert error_of(server.http.post(CHAT, content=json.dumps(HELLO), headers={"content-type": kind}), 415)


def test_a_compressed_body_is_named(server):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error = error_of(server.http.post(CHAT, content=gzip.compress(json.dumps(HELLO).encode()), headers=headers), 415)
    assert "Content-Encoding is 'gzip'" in error["message"]
    headers["content-encoding"] = "identity"
    assert server.http.post(CHAT, content=json.dumps(HELLO), headers=headers).status_code == 200


def test_noise_on_the_wire(server):
    for noise in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            try:
                answer = client.recv(20)
            except ConnectionError:
                answer = b""
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.chat().status_code == 200


def test_a_failure_of_ours_tells_no_secrets(serve, nano, caplog):
    class Broken:
        def __getattr__(self, name):
            return getattr(nano, name)

        def generate(self, *args, **options):
            raise KeyError("the user's secret")

    server = serve(Broken())
    error = error_of(server.chat(), 500)
    assert error["type"] == "server_error" and "secret" not in str(error)
    assert "KeyError in test_bad_input.py" in caplog.text and "secret" not in caplog.text
    with server.http.stream("POST", CHAT, json={**HELLO, "stream": True}) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    assert server.http.get("/health").json()["running"] == 0
