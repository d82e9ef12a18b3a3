"""Reads `input` and `instructions` of a response request into chat messages. Must not import models.

Items of one turn (text, then calls) become one assistant message, as in chat completions.
"""

from __future__ import annotations

from typing import Any

from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_MESSAGES

_ROLES = ("user", "assistant", "system", "developer")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_BOOKKEEPING = frozenset(("id", "status", "phase", "created_by", "namespace"))


def read_input(fields: Fields) -> list[dict[str, Any]]:
    """The messages of a request. ApiError 400 names what is wrong."""
    instructions, given = fields.text("instructions"), fields.any("input")
    if isinstance(given, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": given}]
    else:
        items = fields.required("input", fields.items("input", MAX_MESSAGES))
        messages = _messages(items)
    if instructions:
        if messages and messages[0]["role"] in ("system", "developer"):  # templates have room for one
            first = messages.pop(0)
            instructions = f"{instructions}\n\n{_joined(first['content'])}"
        messages.insert(0, {"role": "system", "content": instructions})
    if not messages:
        raise bad_field("input", "is empty; expected text or at least one message")
    return messages


def _messages(items: list[Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    called: set[str] = set()
    for i, value in enumerate(items):
        item = Fields(value, f"input[{i}]")
        kind = item.choice("type", _ITEMS, "message")
        if kind == "reasoning":  # an earlier answer's, which templates drop
            continue
        if kind == "message":
            role = item.required("role", item.choice("role", _ROLES, "") or None)
            messages.append({"role": role, "content": _content(item, "content")})
        elif kind == "function_call":
            identity = item.required("call_id", item.text("call_id"))
            called.add(identity)
            function = {"name": item.required("name", item.text("name")), "arguments": item.text("arguments") or ""}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": identity, "type": "function", "function": function})
        else:
            identity = item.required("call_id", item.text("call_id"))
            if identity not in called:
                raise bad_field(item.path("call_id"), f"is {identity[:40]!r}; no function_call before it has this id")
            messages.append({"role": "tool", "tool_call_id": identity, "content": _content(item, "output")})
        item.finish(_BOOKKEEPING)
    return messages


def _content(item: Fields, name: str) -> str | list[dict[str, Any]]:
    """Text, or text parts in the form of chat messages."""
    given = item.any(name)
    if isinstance(given, str):
        return given
    parts = []
    for j, value in enumerate(item.required(name, item.items(name, MAX_MESSAGES))):
        part = Fields(value, f"{item.path(name)}[{j}]")
        kind = part.choice("type", tuple(_TEXTS), "input_text")  # images, files and audio are named in the error
        text = part.required(_TEXTS[kind], part.text(_TEXTS[kind]))
        part.finish(("annotations", "logprobs", "prompt_cache_breakpoint"))
        parts.append({"type": "text", "text": text})
    return parts


def _joined(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
