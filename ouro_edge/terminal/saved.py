"""A conversation in a file: JSON with a version, written atomically. A file is untrusted when read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouro_edge.arch.json_object import read_json_object
from ouro_edge.errors import RequestError
from ouro_edge.system.files import atomic_write

_FORMAT = "ouro-edge chat"
_VERSION = 1
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class SavedChat:
    """The stored part of a conversation."""

    model: str  # name of the model, for display
    system: str | None
    messages: list[dict[str, str]]


def write_chat(path: Path, chat: SavedChat) -> None:
    """Write a conversation, replacing an older file. RequestError when writing fails; the older file is kept."""
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": chat.model,
        "system": chat.system,
        "messages": chat.messages,
    }
    try:
        with atomic_write(path, private=True) as file:
            file.write(json.dumps(data, indent=1).encode() + b"\n")
    except (OSError, ValueError) as problem:
        raise RequestError(f"{path} cannot be written: {problem}") from None


def read_chat(path: Path) -> SavedChat:
    """Read a conversation. One-line RequestError when the file is damaged, of another version or another format."""
    data = read_json_object(path, RequestError)
    if data.get("format") != _FORMAT or data.get("version") != _VERSION:
        raise RequestError(f"{path} is not a conversation of version {_VERSION}; expected a file that /save wrote")
    system, messages = data.get("system"), data.get("messages")
    if system is not None and not isinstance(system, str):
        raise RequestError(f"{path} has the system message {system!r:.60}; expected text")
    if not isinstance(messages, list):
        raise RequestError(f"{path} has no list of messages")
    if len(messages) % 2:
        raise RequestError(f"{path} ends with a question; expected questions and answers in turns")
    return SavedChat(str(data.get("model")), system, [_message(path, i, m) for i, m in enumerate(messages)])


def state_path(path: Path) -> Path:
    """The path of the state of the sequence, which /save --kv writes."""
    return path.with_name(f"{path.name}.kv")


def _message(path: Path, at: int, message: Any) -> dict[str, str]:
    role = _ROLES[at % 2]
    content = message.get("content") if isinstance(message, dict) else None
    if content is None and at % 2 and isinstance(message, dict) and message.get("tool_calls"):
        content = ""  # other programs write an answer that is a call like this
    if not isinstance(message, dict) or message.get("role") != role or not isinstance(content, str):
        raise RequestError(f"{path}: message {at + 1} is not of the {role}; expected that role and a text")
    return {"role": role, "content": content}
