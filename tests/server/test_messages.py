"""What a template gets to see of a request: tools, calls of earlier turns, variables."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from toy_text import CHATML

from ouro_edge.errors import TemplateError
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.openai.messages import read_messages, read_template_variables, render
from ouro_edge.server.openai.tools import Tools, read_tools
from ouro_edge.testing import MockModel

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
KNOWS = ChatTemplate(
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }} of {{ c.function.arguments.who }}{% endfor %}{% endfor %}"
    "{% if mood %} in a {{ mood }} mood{% endif %}"
)


def test_tools_calls_and_their_results_reach_the_template():
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"who": "Ada"})}}
    body = Fields(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Where is Ada?"}]},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "here"},
            ],
            "tools": [TOOL],
            "chat_template_kwargs": {"mood": "good"},
        },
        "",
    )
    text = render(KNOWS, read_messages(body), read_tools(body), read_template_variables(body))
    shown, talk = text.split("]", 1)[0], text.split("]", 1)[1]
    assert json.loads(shown + "]") == [TOOL]
    assert talk == "[user] Where is Ada?[assistant] find of Ada[tool] here in a good mood"


def test_a_template_that_shows_no_tools_can_only_be_forced():
    messages = [{"role": "user", "content": "hello"}]
    blind, tools = ChatTemplate(CHATML), read_tools(Fields({"tools": [TOOL]}, ""))
    with pytest.raises(TemplateError, match="ignores tools"):
        render(blind, messages, tools, {})
    forced = read_tools(Fields({"tools": [TOOL], "tool_choice": "required"}, ""))
    assert render(blind, messages, forced, {}) == render(blind, messages, Tools(), {})


def test_a_template_that_prints_results_only_with_tools():
    source = "{% for m in messages %}{% if m.role != 'tool' or tools %}{{ m.content }}{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "hello"}, {"role": "tool", "content": "here"}]
    model: Any = MockModel("never")
    model.text = replace(model.text, template=ChatTemplate(source))
    assert render(model, messages, read_tools(Fields({"tools": [TOOL]}, "")), {}) == "hellohere"
    with pytest.raises(TemplateError, match="role 'tool'"):
        render(model, messages, Tools(), {})


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt"])
def test_some_variables_are_not_for_clients(name):
    with pytest.raises(ApiError, match="name that is not reserved"):
        read_template_variables(Fields({"chat_template_kwargs": {name: True}}, ""))
