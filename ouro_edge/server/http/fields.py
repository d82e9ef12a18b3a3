"""Reads the fields of a JSON object one by one: type, range, default; unknown fields are errors.

null counts as absent, because OpenAI's clients send it so. Every mistake is an ApiError 400 that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ouro_edge.arch.json_object import load_json
from ouro_edge.server.http.errors import ApiError, bad_field

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

T = TypeVar("T")


def parse_json(body: bytes) -> Fields:
    """The top-level object of a request's body; ApiError 400 for anything else."""
    try:
        value = load_json(body, _no_constant)
    except ValueError as problem:
        raise ApiError(400, f"the body is not valid JSON: {problem}") from None
    return Fields(value, "")


class Fields:
    """One JSON object; `finish` raises an error for fields that were not read."""

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise ApiError(400, f"{name or 'the body'} is {_shown(value)}; expected an object", param=name or None)
        self._values: dict[str, Any] = {key: item for key, item in value.items() if item is not None}
        self._name, self._left = name, set(self._values)

    def path(self, name: str) -> str:
        """The name of a field in errors, such as messages[0].role."""
        return f"{self._name}.{name}" if self._name else name

    def any(self, name: str) -> Any:
        """The field unchanged, or None when absent."""
        self._left.discard(name)
        return self._values.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false; `default` when absent."""
        value: bool | None = self._typed(name, bool)
        return default if value is None else value

    def text(self, name: str) -> str | None:
        """Text, or None when absent."""
        value: str | None = self._typed(name, str)
        return value

    def whole(self, name: str, low: int, high: int = 2**63 - 1) -> int | None:
        """A whole number in low..high, or None when absent. 3.0 counts as 3."""
        value = self.any(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or (type(value) is int and low <= value <= high):
            return value
        raise bad_field(self.path(name), f"is {_shown(value)}; expected a whole number from {low} to {high}")

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in low..high, or None when absent."""
        value = self.any(name)
        if value is None or (type(value) in (int, float) and low <= value <= high):
            return value
        raise bad_field(self.path(name), f"is {_shown(value)}; expected a number from {low:g} to {high:g}")

    def choice(self, name: str, options: Collection[str], default: str) -> str:
        """One of several words."""
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in options:
            raise bad_field(self.path(name), f"is {_shown(value)}; expected {' or '.join(sorted(options))}")
        return value

    def items(self, name: str, most: int) -> list[Any] | None:
        """A list of at most `most` items, or None when absent."""
        value: list[Any] | None = self._typed(name, list)
        if value is not None and len(value) > most:
            raise bad_field(self.path(name), f"has {len(value)} items; expected at most {most}")
        return value

    def object(self, name: str) -> Fields | None:
        """An object inside this one, or None when absent."""
        value = self._typed(name, dict)
        return None if value is None else Fields(value, self.path(name))

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """An object unchanged, or None when absent."""
        value: dict[str, Any] | None = self._typed(name, dict)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text or a list of texts; empty when absent."""
        value = self.any(name)
        if isinstance(value, str):
            return (value,)
        self._left.add(name)
        found = self.items(name, most) or []
        for i, item in enumerate(found):
            if not isinstance(item, str):
                raise bad_field(f"{self.path(name)}[{i}]", f"is {_shown(item)}; expected text")
        return tuple(found)

    def required(self, name: str, value: T | None) -> T:
        """The value of a required field."""
        if value is None:
            raise bad_field(self.path(name), "is missing")
        return value

    def finish(self, ignored: Collection[str] = ()) -> None:
        """ApiError when a field was neither read nor is in `ignored`."""
        unknown = sorted(self._left - set(ignored))
        if unknown:
            names = ", ".join(repr(name) for name in unknown[:5])
            message = f"unknown field {names} in {self._name or 'the body'}; remove it"
            raise ApiError(400, message, param=self.path(unknown[0])[:100], code="unknown_parameter")

    def _typed(self, name: str, kind: type) -> Any:
        value = self.any(name)
        if value is not None and type(value) is not kind:
            raise bad_field(self.path(name), f"is {_shown(value)}; expected {_KINDS[kind]}")
        return value


def _shown(value: Any) -> str:
    """A value for an error message: short, with at most the start of a text."""
    if isinstance(value, (bool, int, float)) or value is None:
        return json.dumps(value)[:40]
    if isinstance(value, str):
        return json.dumps(value[:40])
    return _KINDS[type(value)]


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
