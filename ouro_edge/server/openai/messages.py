"""The parts of a chat request that make its prompt and its form: messages, tools in the template, response_format."""

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

_OURS = frozenset(("self", "messages", "tools", "add_generation_prompt"))  # not for clients to set in a template


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages; the template has the last word on roles. Arguments of calls become objects, as templates want."""
    found = fields.required("messages", fields.items("messages", MAX_MESSAGES))
    if not found:
        raise bad_field("messages", "is empty: give at least one")
    messages = []
    for i, item in enumerate(found):
        message = Fields(item, f"messages[{i}]")
        message.required("role", message.text("role"))
        calls = []
        for call in message.items("tool_calls", 128) or []:
            function = Fields(call, f"messages[{i}].tool_calls[]").object("function")
            if function is None or function.text("name") is None:
                raise bad_field(f"messages[{i}].tool_calls", "has a call without a function and its name")
            arguments = function.any("arguments")
            try:
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            except (ValueError, RecursionError):
                raise bad_field(f"messages[{i}].tool_calls", "has arguments that are not JSON") from None
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        messages.append({**item, "tool_calls": calls} if calls else dict(item))
    return messages


def read_template_variables(fields: Fields) -> dict[str, Any]:
    """chat_template_kwargs, as vLLM and llama.cpp call them: enable_thinking and the like."""
    found = dict(fields.mapping("chat_template_kwargs") or {})
    for name, value in found.items():
        if name in _OURS or not isinstance(value, (bool, int, float, str)):
            problem = f"has {name[:40]!r}; expected text, a number, true or false under a name that is not reserved"
            raise bad_field("chat_template_kwargs", problem)
    return found


def read_format(fields: Fields, tools: Tools) -> tuple[Mapping[str, Any] | None, str]:
    """The schema that the answer must follow, and the field that asks for it."""
    wanted = fields.object("response_format")
    kind = "text"
    schema: Mapping[str, Any] | None = None
    if wanted is not None:
        kind = wanted.choice("type", ("text", "json_object", "json_schema"), "text")
        if kind == "json_object":
            schema = ANY_OBJECT
        elif kind == "json_schema":
            inner = wanted.required("json_schema", wanted.object("json_schema"))
            for name in ("name", "description"):  # checked, not used
                inner.text(name)
            inner.flag("strict")
            schema = inner.required("schema", inner.mapping("schema"))
            inner.finish()
        wanted.finish()
    if schema is None:
        return (tools.schema(), "tools") if tools.forced else (None, "")
    if tools.offered:
        raise bad_field("response_format", "and tools exclude each other: give one, or tool_choice: none")
    return schema, "response_format"


def render(model: Model, messages: Sequence[Mapping[str, Any]], tools: Tools, variables: Mapping[str, Any]) -> str:
    """The prompt. A template that does not look at tools would make the model guess: refused but for forced calls."""
    if not tools.offered:
        return model.render(messages, **variables)
    text = model.render(messages, **variables, tools=tools.offered)
    if not tools.forced and text == model.render(messages, **variables):
        raise TemplateError(
            "this model's chat template does not show it tools, so it cannot choose one: "
            "force a call with tool_choice, or leave tools out"
        )
    return text
