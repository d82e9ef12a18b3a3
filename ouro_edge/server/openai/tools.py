"""Tools: what a request offers, and the calls that an answer holds. Knows the `<tool_call>` form; nothing of models.

A forced call is a JSON object {"name", "arguments"} under a schema. A free one is what SmolLM2, Qwen and Hermes were
trained to write: such an object, or a list of them, between <tool_call> and </tool_call>.
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

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request and how they may be used."""

    offered: Sequence[Mapping[str, Any]] = ()  # as the template gets them
    forced: tuple[str, ...] = ()  # names, one of which must be called
    parallel: bool = True  # whether an answer may hold several calls
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # schema of each tool

    def schema(self) -> dict[str, Any]:
        """What a forced call must look like."""
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
        """Fresh state for reading one answer."""
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
        raise bad_field("parallel_tool_calls", "is neither true nor false")
    if choice not in (None, "none") and not found and choice != "auto":
        raise bad_field("tool_choice", "requires a tool, and tools is empty")
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
        raise bad_field("tool_choice", "is neither none, auto, required nor a function")
    if choice == "none":
        return Tools()
    return Tools(offered, forced, parallel is not False, found)


class AnswerText:
    """Cuts an answer's text into OpenAI's deltas; here all of it is content."""

    def push(self, text: str) -> dict[str, Any]:
        """The delta that is certain now."""
        return {"content": text} if text else {}

    def finish(self) -> dict[str, Any]:
        """The rest, when the answer has ended."""
        return {}


class ForcedCall(AnswerText):
    """The whole answer is one call; what was cut off before its end is content."""

    def __init__(self, tools: Tools) -> None:
        self._tools, self._text = tools, ""

    def push(self, text: str) -> dict[str, Any]:
        self._text += text
        return {}

    def finish(self) -> dict[str, Any]:
        calls = _calls(self._text, self._tools)
        return {"tool_calls": _deltas(calls, 0)} if calls else {"content": self._text}


class FreeCalls(AnswerText):
    """Content with calls in it; text that may begin a call is held back, white space after a call dropped."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held, self._inside, self._count = "", False, 0
        self._after_call = False

    def push(self, text: str) -> dict[str, Any]:
        self._held += text
        content, calls = "", []
        while (mark := _CLOSE if self._inside else _OPEN) in self._held:
            before, _, self._held = self._held.partition(mark)
            if not self._inside:
                content += self._content(before)
            elif parsed := _calls(before, self._tools):
                calls += parsed
                self._after_call = True
            else:
                content += self._content(_OPEN + before + _CLOSE)  # no call that we know: leave it to the reader
            self._inside = not self._inside
        if not self._inside:
            most = min(len(_OPEN) - 1, len(self._held))
            keep = next(n for n in range(most, -1, -1) if self._held.endswith(_OPEN[:n]))
            sure = len(self._held) - keep
            content += self._content(self._held[:sure])
            self._held = self._held[sure:]
        return self._delta(content, calls)

    def finish(self) -> dict[str, Any]:
        calls = _calls(self._held, self._tools) if self._inside else []
        return self._delta("" if calls else self._content(_OPEN * self._inside + self._held), calls)

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
    """Names and arguments (JSON text) of the calls that a text spells; empty when it is not all calls of our tools."""
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
