"""New directories above what an export writes: made for it, and gone again when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Make the parents of `path` that are missing; afterwards those of them that are empty are removed."""
    new = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that is not empty keeps those above it
            for parent in new:
                parent.rmdir()
