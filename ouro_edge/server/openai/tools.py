"""Tools: the tools that a request offers, and the calls in an answer. Must not import models.

A forced call is a JSON object {"name", "arguments"} constrained by a schema. A free call has the format that SmolLM2,
Qwen and Hermes were trained on: such an object, or a list of them, between <tool_call> and </tool_call>.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_TOOLS

_OPENING_TAG, _CLOSING_TAG = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request and their allowed use."""

    offered: Sequence[Mapping[str, Any]] = ()  # in the form passed to the template
    forced: tuple[str, ...] = ()  # names of the tools, one of which must be called
    parallel: bool = True  # whether an answer may contain several calls
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # schema of each tool

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a forced call."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": self.parameters[name]},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name in self.forced
        ]
        return calls[0] if len(calls) == 1 else {"anyOf": calls}

    def text(self) -> AnswerText:
        """New parser state for one answer."""
        if self.forced:
            return ForcedCall(self)
        return FreeCalls(self) if self.offered else AnswerText()


def read_tools(fields: Fields) -> Tools:
    """The tools, tool_choice and parallel_tool_calls of a request."""
    found: dict[str, Mapping[str, Any]] = {}
    offered = fields.items("tools", MAX_TOOLS) or []
    for i, item in enumerate(offered):
        tool = Fields(item, f"tools[{i}]")
        tool.required("type", tool.text("type"))
        tool.choice("type", ("function",), "function")
        function = tool.object("function")
        function = tool.required("function", function)
        name = function.required("name", function.text("name"))
        function.text("description")  # checked here, used by the template
        function.flag("strict")
        if name in found:
            raise bad_field(f"tools[{i}].function.name", "is the name of another tool")
        found[name] = function.mapping("parameters") or {"type": "object", "properties": {}}
        function.finish()
        tool.finish()
    choice = fields.any("tool_choice")
    parallel = fields.any("parallel_tool_calls")
    if parallel not in (None, True, False):
        raise bad_field("parallel_tool_calls", "is invalid; expected true or false")
    if choice not in (None, "none") and not found and choice != "auto":
        raise bad_field("tool_choice", "requires a tool, but tools is empty")
    forced: tuple[str, ...] = ()
    if isinstance(choice, dict):
        named = Fields(choice, "tool_choice")
        named.choice("type", ("function",), "function")
        function = named.required("function", named.object("function"))
        name = function.required("name", function.text("name"))
        if name not in found:
            raise bad_field("tool_choice.function.name", "is not the name of a tool")
        function.finish()
        named.finish()
        forced = (name,)
    elif choice == "required":
        forced = tuple(found)
    elif choice not in (None, "auto", "none"):
        raise bad_field("tool_choice", "is invalid; expected none, auto, required or a function")
    if choice == "none":
        return Tools()
    return Tools(offered, forced, parallel is not False, found)


class AnswerText:
    """Splits an answer's text into OpenAI's deltas; this base class returns all of it as content."""

    def push(self, text: str) -> dict[str, Any]:
        """The delta that is final so far."""
        return {"content": text} if text else {}

    def finish(self) -> dict[str, Any]:
        """The remaining delta at the end of the answer."""
        return {}


class ForcedCall(AnswerText):
    """An answer that is one call; an incomplete call is returned as content."""

    def __init__(self, tools: Tools) -> None:
        self._tools, self._text = tools, ""

    def push(self, text: str) -> dict[str, Any]:
        self._text += text
        return {}

    def finish(self) -> dict[str, Any]:
        calls = _calls(self._text, self._tools)
        return {"tool_calls": _deltas(calls, 0)} if calls else {"content": self._text}


class FreeCalls(AnswerText):
    """Content that may contain calls; text that may begin a call is held back, white space after a call is dropped."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held, self._inside, self._count = "", False, 0
        self._after_call = False

    def push(self, text: str) -> dict[str, Any]:
        self._held += text
        content, calls = "", []
        while (mark := _CLOSING_TAG if self._inside else _OPENING_TAG) in self._held:
            before, _, self._held = self._held.partition(mark)
            if not self._inside:
                content += self._content(before)
            elif parsed := _calls(before, self._tools):
                calls += parsed
                self._after_call = True
            else:
                content += self._content(_OPENING_TAG + before + _CLOSING_TAG)  # not a valid call: return it as content
            self._inside = not self._inside
        if not self._inside:
            most = min(len(_OPENING_TAG) - 1, len(self._held))
            keep = next(n for n in range(most, -1, -1) if self._held.endswith(_OPENING_TAG[:n]))
            sure = len(self._held) - keep
            content += self._content(self._held[:sure])
            self._held = self._held[sure:]
        return self._delta(content, calls)

    def finish(self) -> dict[str, Any]:
        calls = _calls(self._held, self._tools) if self._inside else []
        return self._delta("" if calls else self._content(_OPENING_TAG * self._inside + self._held), calls)

    def _content(self, text: str) -> str:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return text

    def _delta(self, content: str, calls: list[tuple[str, str]]) -> dict[str, Any]:
        if not self._tools.parallel:
            calls = calls[: 1 - self._count]
        delta: dict[str, Any] = {"content": content} if content else {}
        if calls:
            delta["tool_calls"] = _deltas(calls, self._count)
            self._count += len(calls)
        return delta


def _calls(text: str, tools: Tools) -> list[tuple[str, str]]:
    """Names and arguments (JSON text) of the calls in a text; empty unless all of it is calls of offered tools."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for call in value if isinstance(value, list) else [value]:
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or name not in tools.parameters or not isinstance(call.get("arguments", {}), dict):
            return []
        calls.append((name, json.dumps(call.get("arguments", {}), ensure_ascii=False)))
    return calls


def _deltas(calls: list[tuple[str, str]], first: int) -> list[dict[str, Any]]:
    return [
        {
            "index": first + i,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
