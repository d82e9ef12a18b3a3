"""Reads the parts of a chat request that form the prompt and its constraint: messages, template variables, format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ouro_edge.errors import TemplateError
from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_MESSAGES
from ouro_edge.server.openai.constraints import ANY_OBJECT
from ouro_edge.server.openai.tools import Tools

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

_RESERVED_VARIABLES = frozenset(("self", "messages", "tools", "add_generation_prompt"))


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages, with call arguments parsed into objects for the template, which also decides about roles."""
    found = fields.required("messages", fields.items("messages", MAX_MESSAGES))
    if not found:
        raise bad_field("messages", "is empty; expected at least one message")
    messages = []
    for i, item in enumerate(found):
        message = Fields(item, f"messages[{i}]")
        message.required("role", message.text("role"))
        calls = []
        for call in message.items("tool_calls", 128) or []:
            function = Fields(call, f"messages[{i}].tool_calls[]").object("function")
            if function is None or function.text("name") is None:
                raise bad_field(f"messages[{i}].tool_calls", "has a call without a function name")
            arguments = function.any("arguments")
            try:
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            except (ValueError, RecursionError):
                raise bad_field(f"messages[{i}].tool_calls", "has arguments that are not valid JSON") from None
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        messages.append({**item, "tool_calls": calls} if calls else dict(item))
    return messages


def read_template_variables(fields: Fields) -> dict[str, Any]:
    """chat_template_kwargs, as in vLLM and llama.cpp: variables such as enable_thinking."""
    found = dict(fields.mapping("chat_template_kwargs") or {})
    for name, value in found.items():
        if name in _RESERVED_VARIABLES or not isinstance(value, (bool, int, float, str)):
            problem = f"has {name[:40]!r}; expected text, a number, true or false under a name that is not reserved"
            raise bad_field("chat_template_kwargs", problem)
    return found


def read_format(fields: Fields, tools: Tools) -> tuple[Mapping[str, Any] | None, str]:
    """The schema that the answer must follow, and the request field that requires it."""
    form = fields.object("response_format")
    kind = "text"
    schema: Mapping[str, Any] | None = None
    if form is not None:
        kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
        if kind == "json_object":
            schema = ANY_OBJECT
        elif kind == "json_schema":
            inner = form.required("json_schema", form.object("json_schema"))
            for name in ("name", "description"):  # checked, not used
                inner.text(name)
            inner.flag("strict")
            schema = inner.required("schema", inner.mapping("schema"))
            inner.finish()
        form.finish()
    if schema is None:
        return (tools.schema(), "tools") if tools.forced else (None, "")
    if tools.offered:
        raise bad_field("response_format", "and tools exclude each other; send one of them, or tool_choice: none")
    return schema, "response_format"


def render(model: Model, messages: Sequence[Mapping[str, Any]], tools: Tools, variables: Mapping[str, Any]) -> str:
    """The prompt. TemplateError when tools are offered to a template that ignores them, except for forced calls."""
    if not tools.offered:
        return model.render(messages, **variables)
    text = model.render(messages, **variables, tools=tools.offered)
    if not tools.forced and text == model.render(messages, **variables):
        raise TemplateError(
            "this model's chat template ignores tools, so the model cannot choose one; "
            "force a call with tool_choice, or omit tools"
        )
    return text
