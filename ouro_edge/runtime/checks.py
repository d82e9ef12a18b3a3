"""Argument checks that all calls of the runtime share: each raises a one-line RequestError for a wrong argument."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from ouro_edge.errors import RequestError, one_line
from ouro_edge.system.numbers import is_number, is_whole


def check_ids(ids: Any, vocab_size: int, name: str = "ids") -> list[int]:
    """Token ids as plain ints. RequestError unless each is a whole number inside the vocabulary."""
    ids = list(check_items(name, ids, "token ids"))
    for i in ids:
        if not is_whole(i) or not 0 <= i < vocab_size:
            raise RequestError(f"token id {shown(i)} is not in the vocabulary of {vocab_size}")
    return [int(i) for i in ids]


def check_items(name: str, value: Any, expected: str) -> Iterable[Any]:
    """An iterable; its items are not checked here. RequestError for other values, and for text, bytes and mappings."""
    scalar = getattr(value, "ndim", 1) == 0  # a 0-d array has __iter__, but iteration fails
    if scalar or not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray, Mapping)):
        raise RequestError(f"{name} is {shown(value)}; expected a list of {expected}")
    return value


def check_kind(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    """RequestError unless `value` is an instance of `kind`, or None if `optional`."""
    if not isinstance(value, kind) and not (optional and value is None):
        raise RequestError(f"{name} is {shown(value)}; expected {kind.__name__}{' or None' * optional}")


def check_whole(name: str, value: Any, least: int, most: int, meaning: str = "") -> int:
    """A whole number from `least` to `most`, otherwise RequestError; `meaning` explains the upper bound."""
    if not is_whole(value) or not least <= value <= most:
        raise RequestError(f"{name} is {shown(value)}; expected a whole number from {least} to {most}{meaning}")
    return int(value)


def check_number(name: str, value: Any, minimum: float, maximum: float, expected: str) -> None:
    """RequestError unless `value` is a number from `minimum` to `maximum`; `expected` describes this in words."""
    if not is_number(value) or not minimum <= value <= maximum:
        raise RequestError(f"{name} is {shown(value)}; expected {expected}")


def shown(value: object) -> str:
    """A short one-line form of a value, for messages."""
    try:
        return one_line(reprlib.repr(value))
    except ValueError:  # Python does not print numbers of thousands of digits
        return f"a very long {type(value).__name__}"
