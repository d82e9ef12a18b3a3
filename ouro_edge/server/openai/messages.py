"""Reads the parts of a chat request that form the prompt and its constraint: messages, template variables, format."""

from __future__ import annotations

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
    """The messages as sent; the template decides about roles and contents."""
    found = fields.required("messages", fields.items("messages", MAX_MESSAGES))
    if not found:
        raise bad_field("messages", "is empty; expected at least one message")
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(found):
        message = Fields(item, f"messages[{i}]")
        message.required("role", message.text("role"))
        for j, call in enumerate(message.items("tool_calls", 128) or []):
            name = f"messages[{i}].tool_calls[{j}]"
            function = Fields(call, name).object("function")
            if function is None or function.text("name") is None:
                raise bad_field(name, "has no function name")
            if not isinstance(function.any("arguments"), (str, dict, type(None))):
                raise bad_field(f"{name}.function.arguments", "has the wrong type; expected text or an object")
        messages.append(dict(item))
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
    """The schema that the answer must follow, and the request field that requires it.

    A forced call takes precedence over the response format; with other tools, the answer may be a call instead.
    """
    form = fields.object("response_format")
    kind = "text"
    schema: Mapping[str, Any] | None = None
    if form is not None:
        kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
        if kind == "json_object":
            schema = form.mapping("schema") or ANY_OBJECT  # with a schema, as in llama.cpp and Together
        elif kind == "json_schema":
            inner = form.required("json_schema", form.object("json_schema"))
            for name in ("name", "description"):  # checked, not used
                inner.text(name)
            inner.flag("strict")
            schema = inner.required("schema", inner.mapping("schema"))
            inner.finish()
        form.finish()
    if tools.forced:
        return tools.schema(), "tools"
    return (None, "") if schema is None else (schema, "response_format")


def render(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    tools: Tools,
    variables: Mapping[str, Any],
    *,
    constrained: bool = False,
) -> str:
    """The prompt. TemplateError when tools are offered to a template that ignores them.

    Except when the answer is `constrained` by a grammar that contains the calls.
    """
    if not tools.offered:
        return model.render(messages, **variables)
    text = model.render(messages, **variables, tools=tools.offered)
    if not tools.forced and not constrained and text == _without_tools(model, messages, variables):
        raise TemplateError(
            "this model's chat template ignores tools, so the model cannot choose one; "
            "force a call with tool_choice, or omit tools"
        )
    return text


def _without_tools(model: Model, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str | None:
    """The prompt without tools; None when the template prints these messages with tools only."""
    try:
        return model.render(messages, **variables)
    except TemplateError:
        return None
