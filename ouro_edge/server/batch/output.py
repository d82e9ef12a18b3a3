"""The output file of a batch: whole lines are appended, one process at a time.

A line is written with one call, so a process that is killed leaves whole lines, which the system writes to the disk. At
least every second and at the end the file is synchronised, so a machine that loses power loses a second of work; it may
then end in a part of a line, which is removed when the batch goes on.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ouro_edge.errors import OuroEdgeError, RequestError
from ouro_edge.server.http.endpoint import dumps

_SYNC_SECONDS = 1.0
ID_PREFIX = "batch_req_"
_START = b'{"id":"' + ID_PREFIX.encode()  # of every line


class OutputError(OuroEdgeError):
    """The output cannot be written."""


class Output:
    """An open output file. RequestError when it cannot be opened, is not a file, or is in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = not path.exists()
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            self._file = os.open(path, flags, 0o666)
        except OSError as problem:
            raise RequestError(f"{path} cannot be written: {problem.strerror or problem}") from None
        self._end = 0  # of the last whole line
        self._synced = time.monotonic()
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            self._refuse(f"{path} is not a file: a batch that can be continued needs one")
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._refuse(f"{path} is in use by another batch: wait for its end or choose another name")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)
        if self._is_new and kind is not None and not self._end:  # nothing was begun
            with suppress(OSError):
                self.path.unlink()

    def lines(self) -> Iterator[bytes]:
        """The whole lines that the file holds; what follows them is dropped by the first `write`.

        RequestError when that is not the beginning of a line of a batch.
        """
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                if line.endswith(b"\n"):
                    self._end += len(line)
                    yield line
                elif not line.startswith(_START[: len(line)]):
                    raise RequestError(
                        f"{self.path} exists and is not the output of a batch: choose another name, or --overwrite"
                    )

    def clear(self) -> None:
        """Drop the content."""
        self._end = 0
        self._cut()

    def write(self, answer: dict[str, Any]) -> None:
        """Append a line. OutputError when the disk is full, with the file cut to its last whole line."""
        data = dumps(answer) + b"\n"
        try:
            if os.fstat(self._file).st_size != self._end:
                self._cut()
            os.lseek(self._file, self._end, os.SEEK_SET)
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as problem:
            with suppress(OSError):
                self._cut()
            raise OutputError(f"{self.path} cannot be written: {problem.strerror or problem}") from None
        self._end += len(data)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)

    def _refuse(self, message: str) -> None:
        os.close(self._file)
        raise RequestError(message)
