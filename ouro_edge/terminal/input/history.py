"""The input history: a private file in the state directory. Uses prompt_toolkit."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def history_file() -> Path | None:
    """OURO_EDGE_HISTORY if set (empty: no history), else chat_history in the state directory of the platform."""
    own = os.environ.get("OURO_EDGE_HISTORY")
    if own is not None:
        return Path(own).expanduser() if own else None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "ouro-edge" / "chat_history"


def open_history() -> tuple[History, str]:
    """The history, and a message for the user when it cannot be stored."""
    try:
        file = history_file()
        if file is None:
            return InMemoryHistory(), ""
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(file)
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home directory
        return InMemoryHistory(), f"the input history will not be stored: {problem}"
    return _Forgiving(str(file)), ""


def _make_private(file: Path) -> None:
    """Create the file if needed; OSError unless it is a writable regular file. Only its owner may read it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{file} is not a regular file")
        if hasattr(os, "fchmod"):
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


class _Forgiving(FileHistory):
    """A history that ignores write errors, such as a full disk, so that the conversation continues."""

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            super().store_string(string)
