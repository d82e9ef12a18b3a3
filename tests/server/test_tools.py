"""Tool calls in the text of an answer, however the text is cut."""

from __future__ import annotations

import json

import pytest

from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.openai.tools import read_tools

TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "ask"}},
]
FIND = '{"name": "find", "arguments": {"who": "Ädä"}}'
ASK = '{"name": "ask", "arguments": {}}'


def read(text, size, **fields):
    """Content and calls of an answer that comes in pieces of `size` characters."""
    reader = read_tools(Fields({"tools": TOOLS, **fields}, "")).text()
    deltas = [reader.push(text[i : i + size]) for i in range(0, len(text), size)] + [reader.finish()]
    json.dumps(deltas, ensure_ascii=False).encode()  # as it is sent
    content = "".join(delta.get("content", "") for delta in deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    assert len({call["id"] for call in calls}) == len(calls)
    return content, [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("just <b>text</b> <tool", "just <b>text</b> <tool", []),
        (f"<tool_call>\n{FIND}\n</tool_call>", "", ["find"]),
        (f"I look.\n<tool_call>{FIND}</tool_call>\n<tool_call>{ASK}</tool_call>", "I look.\n", ["find", "ask"]),
        (f"<tool_call>[{FIND}, {ASK}]</tool_call>", "", ["find", "ask"]),
        (f"<tool_call>{FIND}", "", ["find"]),  # the answer ended without the closing mark
        ("<tool_call>{oops</tool_call> then", "<tool_call>{oops</tool_call> then", []),
        ('<tool_call>{"name": "other"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>', []),
        ("<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
        (f"<tool_call>{FIND}</tool_call> \n and so on", "and so on", ["find"]),
        (f"<tool_call>{FIND}\n{ASK}</tool_call>", "", ["find", "ask"]),
        (f"<tool_call>{FIND}, {ASK}</tool_call>x", "x", ["find", "ask"]),
        (f"<tool_call>{FIND}<tool_call>{ASK}", "", ["find", "ask"]),
        (f"<tool_call>{FIND} There.", "There.", ["find"]),
        (f"<tool_call>{FIND}</tool_c", "", ["find"]),
        (f"<tool_call>{FIND}{{oops", "{oops", ["find"]),
        ('<tool_call>{"a</tool_call>b' + f"<tool_call>{ASK}</tool_call>", '<tool_call>{"a</tool_call>b', ["ask"]),
        (f"<tool_call>{{oops</tool_call><tool_call>{ASK}", "<tool_call>{oops</tool_call>", ["ask"]),
        ("use <tool_call> and </tool_call> tags", "use <tool_call> and </tool_call> tags", []),
        ("<tool_call></tool_call>", "<tool_call></tool_call>", []),
        ("<tool_call>\n", "<tool_call>\n", []),
        ("<tool_call>" + FIND[:-1] + "</tool_call>.", "<tool_call>" + FIND[:-1] + "</tool_call>.", []),
    ],
)
def test_free_calls(text, content, names, size):
    found, calls = read(text, size)
    assert found == content and [name for name, _ in calls] == names
    assert all(arguments == {"who": "Ädä"} for name, arguments in calls if name == "find")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("before", ["", "<think>"])
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"name": "find", "arguments": {"x": "a</tool_call>b"}}', {"x": "a</tool_call>b"}),
        (r'{"name": "find", "arguments": {"x": "\\"}}', {"x": "\\"}),
        (r'{"name": "find", "arguments": {"x": "\"}</tool_call>{"}}', {"x": '"}</tool_call>{'}),
        ('{"name": "find", "arguments": {"x": "<tool_call>{"}}', {"x": "<tool_call>{"}),
        ('{"name": "find", "parameters": {"x": 1}}', {"x": 1}),
        (r'{"name": "find", "arguments": "{\"x\": [1.5]}"}', {"x": [1.5]}),
        ('{"name": "find", "arguments": ""}', {}),
        ('{"name": "find", "arguments": null}', {}),
        ('{"name": "find"}', {}),
        ('{"type": "function", "function": {"name": "find", "arguments": {"x": 1}}}', {"x": 1}),
        (r'{"name": "find", "arguments": {"x": "\ud800"}}', {"x": "\ud800"}),
    ],
)
def test_the_arguments_of_a_call(call, arguments, before, size):
    assert read(f"{before}<tool_call>\n{call}\n</tool_call>", size) == (before, [("find", arguments)])


@pytest.mark.parametrize(
    "arguments",
    ['{"x": NaN}', '{"x": 1e999}', '{"x": -Infinity}', "[1]", "5", '"text"', "true", '"{\\"x\\": NaN}"', "9" * 5000],
)
def test_arguments_that_are_not_an_object_of_json(arguments):
    text = f'<tool_call>{{"name": "find", "arguments": {arguments}}}</tool_call>'
    assert read(text, 7) == (text, [])
    text = f'{{"name": "find", "arguments": {arguments}}}'
    assert read(text, 7, tool_choice="required") == (text, [])


def test_arguments_in_an_unknown_place_do_not_become_empty():
    text = '<tool_call>{"name": "find", "inputs": {"x": 1}}</tool_call>'
    assert read(text, 7) == (text, [])


def test_brackets_without_end_are_text():
    text = "<tool_call>" + "[" * 100_000
    assert read(text, 1000) == (text, [])


def test_one_call_only_when_asked_so():
    text = f"<tool_call>{FIND}</tool_call><tool_call>{ASK}</tool_call>"
    assert [name for name, _ in read(text, 5, parallel_tool_calls=False)[1]] == ["find"]


def test_forced_calls():
    assert read(FIND, 4, tool_choice="required") == ("", [("find", {"who": "Ädä"})])
    assert read(FIND[:-4], 4, tool_choice="required") == (FIND[:-4], [])  # cut off by max_tokens
    named = {"type": "function", "function": {"name": "ask"}}
    tools = read_tools(Fields({"tools": TOOLS, "tool_choice": named}, ""))
    assert tools.schema()["properties"]["name"] == {"const": "ask"}
    both = read_tools(Fields({"tools": TOOLS, "tool_choice": "required"}, "")).schema()
    assert [call["properties"]["name"]["const"] for call in both["anyOf"]] == ["find", "ask"]


def test_none_means_none():
    assert read(f"<tool_call>{FIND}</tool_call>", 7, tool_choice="none")[1] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOLS[0], TOOLS[0]]},
        {"tools": TOOLS, "tool_choice": "find"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": TOOLS, "tool_choice": {"type": "function"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "extra": 1}}]},
        {"tools": TOOLS, "parallel_tool_calls": "yes"},
    ],
)
def test_tools_that_make_no_sense(fields):
    with pytest.raises(ApiError) as refused:
        read_tools(Fields(fields, ""))
    assert refused.value.status == 400
