"""What real clients send: headers of their SDKs in browsers, other base URLs, fields of other servers."""

from __future__ import annotations

import pytest

from ouro_edge.server.limits import Access

PAGE = "https://app.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    "headers",
    ["authorization,content-type,x-stainless-arch,x-stainless-retry-count,user-agent", "x-anything-else"],
)
def test_a_page_of_an_admitted_origin_may_send_any_header(serve, headers):
    server = serve(access=Access(origins=(PAGE,)))
    asked = {**PREFLIGHT, "Access-Control-Request-Headers": headers}
    answer = server.http.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert set(headers.split(",")) <= set(answer.headers["access-control-allow-headers"].replace(" ", "").split(","))
    other = server.http.options("/v1/chat/completions", headers={**asked, "Origin": "https://other.example"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/completions", "/v1/completions"),
        ("/api/v1/models", "/v1/models"),
        ("/embeddings/", "/v1/embeddings"),
        ("/v1//completions", "/v1/completions"),
        ("/api/generate", "one of /v1/models, /v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings"),
        ("/v1", "one of /v1/models, /v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings"),
    ],
)
def test_an_unknown_path_names_the_right_one(server, path, meant):
    answer = server.http.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"unknown path: POST {path}; expected {meant}"


def test_no_limit_and_a_schema_in_the_form_of_other_servers(server):
    person = {"type": "object", "properties": {"age": {"enum": [7]}}, "required": ["age"],
              "additionalProperties": False}  # fmt: skip
    for name in ("max_tokens", "max_completion_tokens"):
        answer = server.chat(**{name: -1})
        assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop"
        assert server.chat(**{name: -2}).status_code == 400
    assert len(server.complete(max_tokens=-1, stop=[]).json()["choices"][0]["ouro_edge"]["depths"]) > 16
    answer = server.chat(response_format={"type": "json_object", "schema": person}, max_tokens=30)
    assert answer.json()["choices"][0]["message"]["content"] == '{"age": 7}'


@pytest.mark.parametrize(
    ("pattern", "says"), [("(", "unclosed group"), ("[z-a]", "invalid character class range"), ("(?=x)", "look-around")]
)
def test_an_error_in_a_pattern_is_said_in_full(server, pattern, says):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": pattern}}}
    answer = server.chat(response_format=form)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert pattern in message and says in message and "\n" not in message


def test_a_request_without_the_prompt_cache_leaves_and_finds_nothing(serve):
    server = serve()
    for fields, kept in (({}, False), ({"cache_prompt": False}, False), ({"cache_prompt": True}, True)):
        usage = server.chat("Ada likes Ben. Who?", **fields).json()["usage"]
        assert (usage["prompt_tokens_details"]["cached_tokens"] > 0) is kept
    assert server.chat(cache_prompt="no").status_code == 400
