"""Files written whole or not at all, and the missing directories above them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, *, private: bool = False, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and is removed when the block fails.

    Readers of `path` see the old content or the new one, never a part of it. The temporary file is stored beside `path`
    (`file.name` is its path, for libraries that open files themselves). `private`: only the owner may read the result.
    `sync`: the content reaches the disk before the old one is given up, also when the machine loses power; without it
    large files are written faster. OSError when anything cannot be written; whatever else the block raises passes.
    """
    work = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.partial")
    file = open(work, "xb", opener=lambda name, flags: os.open(name, flags, 0o600 if private else 0o666))  # noqa: SIM115
    try:
        with file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(work, path)  # after the close: Windows refuses to move an open file
    except BaseException:
        with suppress(OSError):
            work.unlink()
        raise


@contextmanager
def parent_directories(path: Path) -> Iterator[None]:
    """Create the missing parents of `path`; when the block ends, those that are still empty are removed."""
    new = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that is not empty keeps those above it
            for parent in new:
                parent.rmdir()
