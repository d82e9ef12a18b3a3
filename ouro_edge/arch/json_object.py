"""JSON objects from files of unknown origin: bounded, strict, with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ouro_edge.errors import ConfigError

_MAX_JSON_BYTES = 64 << 20


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
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{name} cannot be read as JSON: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{name} contains {type(data).__name__}; expected a JSON object")
    return data
