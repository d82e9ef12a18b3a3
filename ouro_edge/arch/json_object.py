"""JSON of unknown origin: bounded, strict, with one-line errors.

Python's parser recurses for every level of nesting, up to the limit of the interpreter. A garbage collection at that
depth runs the finalisers of other objects, such as generations that were dropped, and they fail without any stack left.
Deep nesting is therefore refused before the text is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ouro_edge.errors import ConfigError

MAX_NESTING = 64  # levels of lists and objects
_MAX_JSON_BYTES = 64 << 20
_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)  # a string, or the beginning or end of a level


def load_json(content: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. ValueError if it is not valid or nested in more than `MAX_NESTING` levels."""
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    if is_nested_too_deeply(content):
        raise ValueError(f"nested more than {MAX_NESTING} levels deep")
    return json.loads(content, parse_constant=parse_constant)


def is_nested_too_deeply(text: str) -> bool:
    """Whether a JSON text has more than `MAX_NESTING` levels of lists and objects."""
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return False
    level = 0
    for mark in _MARK.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if level > MAX_NESTING:
            return True
    return False


def read_json_object(path: Path, error: type[Exception] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file; raises `error` when the file is missing, not UTF-8, not JSON or not an object."""
    try:
        status = path.stat()
        ordinary = S_ISREG(status.st_mode) and status.st_size <= _MAX_JSON_BYTES  # no pipes
        content = path.read_bytes() if ordinary else b""
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError) as problem:  # ValueError: not a valid file name
        raise error(f"{path} cannot be read: {problem}") from None
    if not ordinary:
        raise error(f"{path} is not a regular file of at most {_MAX_JSON_BYTES >> 20} MiB")
    return parse_json_object(content, str(path), error)


def parse_json_object(content: bytes, name: str, error: type[Exception] = ConfigError) -> dict[str, Any]:
    """The JSON object in the content of the file `name`; raises `error` when the content is not a JSON object."""
    try:
        data = load_json(content.decode("utf-8-sig"))
    except ValueError as problem:
        raise error(f"{name} cannot be read as JSON: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{name} contains {type(data).__name__}; expected a JSON object")
    return data
