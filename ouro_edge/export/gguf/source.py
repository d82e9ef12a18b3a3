"""A GGUF file that stays open: a file renamed over it, or its removal, does not reach a model that runs from it."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import CheckpointError


class SourceFile:
    """One open file, closed when nothing refers to it any more.

    Tensors are mapped from the open file for each read instead of once, so that their pages leave memory again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))
        try:
            self._descriptor = os.open(path, flags)  # O_NONBLOCK: a pipe without a writer would never open
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except (OSError, ValueError) as problem:  # ValueError: not a valid file name
            raise CheckpointError(f"{path} cannot be read: {problem}") from None
        weakref.finalize(self, os.close, self._descriptor)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise CheckpointError(f"{path} is not a regular file; replace it by a copy of the file")
        self._stamp = self._now()

    def stream(self) -> BinaryIO:
        """The file as a stream, which shares its position with other streams; closing it leaves the file open."""
        return open(self._descriptor, "rb", closefd=False)

    def map(self, offset: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Bytes [rows, row_bytes] from an offset on, mapped but not read."""
        if self._now() != self._stamp:  # overwritten in place: the weights in use and those in the file would mix
            raise CheckpointError(f"{self.path} can no longer be read: it was changed after it was opened; load the "
                                  "model again")  # fmt: skip
        try:
            with self.stream() as file:
                mapped: NDArray[Any] = np.memmap(file, np.uint8, "r", offset, (rows, row_bytes))
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{self.path} can no longer be read: {problem}") from None
        return mapped

    def _now(self) -> tuple[int, int]:
        """Size and time of the last change of the file's content."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
