"""Tools: the tools that a request offers, and the schema of a forced call. Must not import models.

A forced call is a JSON object {"name", "arguments"} constrained by a schema; free calls are found in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_TOOLS
from ouro_edge.server.openai.call_text import AnswerText, CallsOrJson, ForcedCall, FreeCalls
from ouro_edge.server.openai.schemas import moved


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request and their allowed use."""

    offered: Sequence[Mapping[str, Any]] = ()  # in the form passed to the template
    forced: tuple[str, ...] = ()  # names of the tools, one of which must be called
    parallel: bool = True  # whether an answer may contain several calls
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # schema of each tool

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a call: of a forced tool, or of any tool if none is forced."""
        names = self.forced or tuple(self.parameters)
        calls = []
        for i, name in enumerate(names):
            place = f"#/anyOf/{i}/properties/arguments" if len(names) > 1 else "#/properties/arguments"
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": name}, "arguments": moved(self.parameters[name], place)},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        return calls[0] if len(calls) == 1 else {"anyOf": calls}

    def text(self, *, constrained: bool = False) -> AnswerText:
        """New parser state for one answer; `constrained`: by the schema of the response format."""
        if self.forced:
            return ForcedCall(self.parameters)
        if not self.offered:
            return AnswerText()
        return (CallsOrJson if constrained else FreeCalls)(self.parameters, parallel=self.parallel)


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
