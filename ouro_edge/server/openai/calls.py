"""Tool calls in the text of an answer: where their JSON ends, and what they call. Must not import models.

A call ends where its JSON ends. It is an object with the name and the arguments of a tool. Arguments may also be under
`parameters`, and may be an object written as JSON text. Calls come one after the other, or in a list.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any, NoReturn

from ouro_edge.arch.json_object import is_nested_too_deeply

_ARGUMENTS = ("arguments", "parameters")

Call = tuple[str, str]  # the name of the tool, and the arguments as JSON text


def find_calls(text: str, names: Collection[str]) -> list[Call]:
    """The calls in a text; empty unless all of it is calls of the named tools."""
    calls: list[Call] = []
    if is_nested_too_deeply(text):
        return calls
    at = skip_between(text, 0)
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except ValueError:
            return []
        found = [_call(item, names) for item in (value if isinstance(value, list) else [value])]
        calls += [call for call in found if call is not None]
        if None in found:
            return []
        at = skip_between(text, at)
    return calls


def skip_between(text: str, at: int) -> int:
    """The position after the white space, commas and semicolons that may separate calls."""
    while at < len(text) and (text[at].isspace() or text[at] in ",;"):
        at += 1
    return at


def deltas_of(calls: list[Call], first: int) -> list[dict[str, Any]]:
    """The calls in OpenAI's form, numbered from `first`, each with a new id."""
    return [
        {
            "index": first + i,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for i, (name, arguments) in enumerate(calls)
    ]


class ValueScanner:
    """Finds the end of a JSON object or list in text that arrives in pieces, in one pass. Tags in strings are data."""

    __slots__ = ("_at", "_depth", "_in_string")

    def __init__(self) -> None:
        self._at, self._depth, self._in_string = 0, 0, False

    def end(self, text: str) -> int | None:
        """The position after the value that starts at 0, None while it is incomplete, -1 if it cannot be JSON."""
        while self._at < len(text):
            character = text[self._at]
            if self._in_string:
                if character == "\\":
                    if self._at + 1 == len(text):
                        return None  # the escaped character is still missing
                    self._at += 1
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character == "<":
                return -1
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return self._at + 1
            self._at += 1
        return None


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _call(value: Any, names: Collection[str]) -> Call | None:
    """The call that an object makes, or None."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):  # OpenAI's own form
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    key = next((key for key in _ARGUMENTS if key in value), None)
    if key is None and value.keys() - {"name", "id", "type"}:
        return None  # arguments in an unknown place must not become {}
    arguments = value[key] if key is not None else {}
    if isinstance(arguments, str):
        try:
            if is_nested_too_deeply(arguments):
                return None
            arguments = _DECODER.decode(arguments) if arguments.strip() else {}
        except ValueError:
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot express
        text = json.dumps(arguments)
    return name, text
