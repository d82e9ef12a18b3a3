"""/v1/responses: objects and events as OpenAI's own client reads them, over plain HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.testing import MockModel

ECHO = "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
CALLS = (
    "{{ tools or '' }}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %};"
    "{% endfor %}"
)
FIND: dict[str, Any] = {"type": "function", "name": "find", "description": "Find.",
                        "parameters": {"type": "object", "properties": {"who": {"enum": ["Ada"]}},
                                       "required": ["who"], "additionalProperties": False}}  # fmt: skip


class Person(BaseModel):
    name: Literal["Ada", "Ben"]
    age: Literal[7, 8]


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def mock(answer, template=ECHO):
    model = MockModel(answer)
    model.text = replace(model.text, template=ChatTemplate(template))
    return model


def events_of(server, **body):
    """The events of a stream: each has its type as the name of the event, and the next number."""
    with server.http.stream("POST", "/v1/responses", json={"stream": True, **body}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        blocks = [block for block in answer.read().decode().split("\n\n") if block]
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        events.append(event)
    return events


def prompt_of(serve, body, template=ECHO):
    """The prompt that a request makes."""
    model = mock("Yes.", template)
    answer = serve(model).http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return model.prompts[-1]


def test_a_response_object(server):
    body = {"model": "m", "input": "hello", "metadata": {"a": "b"}, "store": True, "temperature": 0.5, "seed": 1}
    answer = server.http.post("/v1/responses", json=body).json()
    chat = server.chat(temperature=0.5, seed=1).json()
    [item] = answer["output"]
    [part] = item["content"]
    assert part["text"] == chat["choices"][0]["message"]["content"] and part["annotations"] == []
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert (answer["object"], answer["status"], answer["error"], answer["store"]) == (
        "response",
        "completed",
        None,
        False,
    )
    assert answer["metadata"] == {"a": "b"} and answer["temperature"] == 0.5
    assert answer["id"].startswith("resp_") and answer["text"] == {"format": {"type": "text"}}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] == chat["usage"]["total_tokens"]
    assert openai.types.responses.Response.model_validate(answer).output_text == part["text"]


def test_events_in_the_documented_order(server):
    events = events_of(server, input="hello")
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = types.count("output_text.delta")
    assert deltas > 1
    assert types == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    text = "".join(event["delta"] for event in events if event["type"].endswith("text.delta"))
    final = events[-1]["response"]
    assert text == events[-4]["text"] == events[-3]["part"]["text"] == final["output"][0]["content"][0]["text"]
    assert events[-2]["item"] == final["output"][0] and final["usage"]["output_tokens"] > 0
    assert events[2]["item"]["content"] == [] and events[0]["response"]["output"] == []
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    assert [event["ouro_edge"]["depth"] for event in events if event["type"].endswith("text.delta")]


def test_a_limit_is_an_incomplete_response(server):
    events = events_of(server, input="hello", max_output_tokens=2)
    assert events[-1]["type"] == "response.incomplete"
    final = events[-1]["response"]
    assert final["incomplete_details"] == {"reason": "max_output_tokens"} and final["max_output_tokens"] == 2
    assert final["output"][0]["status"] == "incomplete" and final["usage"]["output_tokens"] == 2
    whole = server.http.post("/v1/responses", json={"input": "hello", "max_output_tokens": 2}).json()
    assert whole["status"] == "incomplete" and whole["completed_at"] is None


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"input": "hi"}, "user:hi;"),
        ({"input": "hi", "instructions": "Be."}, "system:Be.;user:hi;"),
        ({"input": [{"role": "developer", "content": "B"}, {"role": "user", "content": "hi"}], "instructions": "A"},
         "system:A\n\nB;user:hi;"),
        ({"input": [{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}]}, "user:a\nb;"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "reasoning", "id": "rs_1", "summary": []},
                    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                        {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}]},
                    {"role": "user", "content": "c"}]}, "user:a;assistant:b;user:c;"),
        ({"instructions": "A", "input": []}, "system:A;"),
    ],
)  # fmt: skip
def test_what_the_template_gets(serve, body, prompt):
    assert prompt_of(serve, body) == prompt


def test_calls_of_one_turn_are_one_message(serve):
    call = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": '{"who": "Ada"}', "id": "fc_1"}
    items = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "t"}, call,
             {**call, "call_id": "c2", "arguments": ""},
             {"type": "function_call_output", "call_id": "c1", "output": "x"},
             {"type": "function_call_output", "call_id": "c2", "output": [{"type": "text", "text": "y"}]}]  # fmt: skip
    rendered = 'user:q;assistant:t<find {"who": "Ada"}><find {}>;tool:x;tool:y;'
    assert prompt_of(serve, {"input": items}, CALLS) == rendered
    assert prompt_of(serve, {"input": [items[0], call, items[4]]}, CALLS) == (
        'user:q;assistant:<find {"who": "Ada"}>;tool:x;'
    )


def test_reasoning_text_and_calls_are_items(serve):
    said = '<think>Hm.</think>Well. <tool_call>{"name": "find", "arguments": {"who": "Ada"}}</tool_call>'
    server = serve(mock(said, "<think>" + CALLS))
    body = {"input": "q", "tools": [FIND]}
    final = events_of(server, **body)[-1]["response"]
    whole = server.http.post("/v1/responses", json=body).json()
    for response in (final, whole):
        kinds = [item["type"] for item in response["output"]]
        assert kinds == ["reasoning", "message", "function_call"]
        thought, message, call = response["output"]
        assert thought["content"][0]["text"] == "Hm." and message["content"][0]["text"].strip() == "Well."
        assert call["name"] == "find" and json.loads(call["arguments"]) == {"who": "Ada"}
        assert call["call_id"].startswith("call_") and call["status"] == "completed"
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    types = [event["type"].removeprefix("response.") for event in events_of(server, **body)]
    shown = [name for i, name in enumerate(types) if types[i - 1] != name]
    assert shown == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "output_item.added",
        "function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip


def test_a_tool_loop_with_the_client(client):
    tools: Any = [FIND]
    first = client.responses.create(model="m", input="hello", tools=tools, tool_choice="required")
    [call] = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"who": "Ada"}
    named = client.responses.create(
        model="m", input="hello", tools=tools, tool_choice={"type": "function", "name": "find"}
    )
    assert named.output[0].type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "here"}
    items: Any = [{"role": "user", "content": "hello"}, *first.output, result]
    second = client.responses.create(model="m", input=items, tools=tools, tool_choice="none", max_output_tokens=4)
    assert second.output[0].type == "message" and second.tool_choice == "none"


def test_a_schema_with_the_client(client):
    parsed = client.responses.parse(model="m", input="hello", text_format=Person, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Person) and parsed.text.format.name == "Person"
    with client.responses.stream(model="m", input="hello", text_format=Person, max_output_tokens=200) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    text: Any = {"format": {"type": "json_object"}}
    assert json.loads(client.responses.create(model="m", input="hello", text=text).output_text) is not None


def test_logprobs(server):
    body = {"input": "hello", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = server.http.post("/v1/responses", json=body).json()
    chat = server.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert answer["output"][0]["content"][0]["logprobs"] == chat
    deltas = [event for event in events_of(server, **body) if event["type"] == "response.output_text.delta"]
    assert [token for event in deltas for token in event["logprobs"]] == chat


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "input is empty"),
        ({"input": 5}, "input", "expected a list"),
        ({"input": ["x"]}, None, 'input[0] is "x"; expected an object'),
        ({"input": [{"content": "x"}]}, "input[0].role", "is missing"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", '"tool"; expected'),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type", '"input_image"; expected'),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "is missing"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", '"item_reference"; expected'),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id", "no func"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name", "is missing"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "nothing is stored"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "nothing is stored"),
        ({"input": "x", "background": True}, "background", "not supported"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", '"web_search"; expected function'),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
        ({"input": "x", "tools": [FIND, FIND]}, "tools[1].name", "another tool"),
        ({"input": "x", "tools": [{**FIND, "parameters": {"type": "array", "uniqueItems": True}}],
          "tool_choice": "required"}, None, "uniqueItems"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"input": "x", "tools": [FIND], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "not"),
        ({"input": "x", "tools": [FIND], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "expected"),
        ({"input": "x", "tools": [FIND], "tool_choice": "any"}, "tool_choice", '"any"; expected'),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "expected a whole number"),
        ({"input": "x", "max_tokens": 5}, "max_tokens", "unknown field"),
        ({"input": "x", "messages": []}, "messages", "unknown field"),
        ({"input": "x", "n": 2}, "n", "unknown field"),
        ({"input": "x", "temperature": "hot"}, "temperature", "expected a number"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type", "expected"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "is missing"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "string",
          "pattern": "("}}}}, "text.format", "unclosed group"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs", "expected a whole number"),
        ({"input": "x" * 40000}, None, "context"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_named(server, body, param, says, stream):
    answer = server.http.post("/v1/responses", json={**body, "stream": stream})
    error = answer.json()["error"]
    assert answer.status_code == 400 and says in error["message"], error
    assert error["param"] == param or param is None, error


def test_fields_of_clients_that_change_nothing(server):
    body = {"input": "hello", "store": False, "user": "u", "truncation": "auto", "background": False,
            "service_tier": "auto", "reasoning": {"effort": "low", "summary": "auto"}, "text": {"verbosity": "low"},
            "max_tool_calls": 3, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
            "stream_options": {"include_obfuscation": False}, "previous_response_id": None}  # fmt: skip
    answer = server.http.post("/v1/responses", json=body)
    assert answer.status_code == 200 and answer.json()["reasoning"]["effort"] == "low"


def test_a_failure_in_a_stream_is_an_event(serve):
    class Failing(MockModel):
        def generate(self, *args: Any, **options: Any) -> Any:
            for i, event in enumerate(super().generate(*args, **options)):
                if i == 2:
                    raise ZeroDivisionError("secret")
                yield event

    model = Failing("Some words here.")
    events = events_of(serve(model), input="q")
    assert events[-1]["type"] == "response.failed"
    final = events[-1]["response"]
    assert final["status"] == "failed" and final["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(events)
