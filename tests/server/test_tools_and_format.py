"""Tools together with a response format: the answer is a call, or follows the schema. With OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from ouro_edge.server.http.fields import Fields
from ouro_edge.server.openai.constraints import SchemaConstraint, Schemas
from ouro_edge.server.openai.tools import read_tools

QUESTION: Any = [{"role": "user", "content": "Ada likes Ben. Who likes Ben?"}]
PERSON = {
    "$defs": {"Name": {"enum": ["Ada", "Ben"]}},
    "type": "object",
    "properties": {"who": {"$ref": "#/$defs/Name"}},
    "required": ["who"],
}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": PERSON}} for name in ("find", "ask")]
ANSWER = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_is_a_call_or_follows_the_schema(client, seed):
    choice = client.chat.completions.create(
        model="m", messages=QUESTION, tools=TOOLS, response_format=FORM, temperature=2, seed=seed, max_tokens=300
    ).choices[0]
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            assert call.function.name in ("find", "ask") and set(json.loads(call.function.arguments)) == {"who"}
    elif choice.finish_reason == "stop":
        assert set(json.loads(choice.message.content)) == {"age"}


def test_a_forced_call_takes_precedence(client):
    for choice in ("required", {"type": "function", "function": {"name": "ask"}}):
        answer = client.chat.completions.create(
            model="m", messages=QUESTION, tools=TOOLS, tool_choice=choice, response_format=FORM
        )
        [call] = answer.choices[0].message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"who"}
    answer = client.chat.completions.create(
        model="m", messages=QUESTION, tools=TOOLS, tool_choice="none", response_format=FORM
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"age"}


CALL = '<tool_call>\n{"name": "find", "arguments": {"who": "Ada"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "parallel", "possible"),
    [
        (CALL, True, True),
        (f"{CALL}\n{CALL}", True, True),
        (f"{CALL}\n{CALL}", False, False),
        ('{"age": 5}', True, True),
        ('{"age": 5, "x": 1}', True, False),
        ("I look.", True, False),
        (CALL.replace("find", "other"), True, False),
        (CALL.replace("Ada", "Bob"), True, False),
        (CALL + '{"age": 5}', True, False),
    ],
)
def test_what_the_grammar_allows(nano, text, parallel, possible):
    tools = read_tools(Fields({"tools": TOOLS}, ""))
    constraint = Schemas(nano).compile_choice(ANSWER, "response_format", tools.schema(), parallel=parallel)()
    assert isinstance(constraint, SchemaConstraint)
    matcher = constraint._matcher
    ids = nano.tokenizer.encode(text)
    assert (matcher.validate_tokens(ids) == len(ids)) == possible


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (CALL, "", ["find"]),
        (f"{CALL}\n{CALL}", "", ["find", "find"]),
        ('{"a": "<tool_call>"}', '{"a": "<tool_call>"}', []),
        (json.dumps({"a": CALL}), json.dumps({"a": CALL}), []),
        ("", "", []),
    ],
)
def test_the_deltas(text, content, names):
    reader = read_tools(Fields({"tools": TOOLS}, "")).text(constrained=True)
    deltas = [reader.push(character) for character in text] + [reader.finish()]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls", ())] == names


def test_an_error_names_the_field(client):
    bad = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
        client.chat.completions.create(model="m", messages=QUESTION, tools=[tool], response_format=FORM)
    assert refused.value.param == "tools"
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
        client.chat.completions.create(model="m", messages=QUESTION, tools=TOOLS, response_format=form)
    assert refused.value.param == "response_format"
