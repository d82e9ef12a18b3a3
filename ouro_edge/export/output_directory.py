"""A directory that is published whole: written under a hidden name, renamed at the end.

A failed or interrupted export removes the hidden directory. A killed one leaves it; a later export to the same place
removes it when it is a day old.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from ouro_edge.errors import ExportError
from ouro_edge.system.files import parent_directories

# Of a directory: the names that belong to the exported model in it, or None when it is not an exported model.
Owned = Callable[[Path], Set[str] | None]

_STALE_SECONDS = 24 * 3600  # age after which a working directory is abandoned


@contextmanager
def fresh_directory(out: Path, source: Path, owned: Owned, *, last: str, overwrite: bool = False) -> Iterator[Path]:
    """A working directory that is published as `out` at the end of the block; an error removes it and new parents.

    It is a sibling of `out`, or inside `out` when `out` is empty: that may be a mount point, which cannot be renamed.
    `owned` decides what `overwrite` may delete, never a directory that contains `source`; `last` is the file without
    which a directory is not taken for a model. ExportError when `out` is in use or cannot be written.
    """
    out = Path(os.path.realpath(out))
    try:
        _remove_stale(out)
        home = out if _content(out, overwrite, source, owned) == [] else out.parent
        work = home / f".{out.name}.{secrets.token_hex(4)}.partial"
        with parent_directories(work):
            try:
                work.mkdir()
                yield work
                _publish(work, out, overwrite, source, owned, last)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as problem:
        raise ExportError(f"{out} cannot be written: {problem.strerror or problem}; nothing was kept") from None


def _content(out: Path, overwrite: bool, source: Path, owned: Owned) -> list[str] | None:
    """The names in `out`, or None when it does not exist. ExportError when it contains files of other origin."""
    try:
        names = sorted(os.listdir(out))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ExportError(f"{out} exists as a file or is a path below a file; choose another name") from None
    if not names:
        return names
    if not overwrite:
        raise ExportError(f"{out} exists and is not empty; remove it, choose another name or pass --overwrite")
    expected = owned(out)
    if expected is None:
        raise ExportError(f"{out} is not an exported model, so it is not overwritten; choose another name")
    if source.resolve().is_relative_to(out):
        raise ExportError(f"{source} is inside {out}, which --overwrite would delete; choose another name")
    if strange := [name for name in names if name not in expected]:
        raise ExportError(f"{out} holds {strange[0]!r}, which is not part of the model there: move it or choose "
                          "another name")  # fmt: skip
    return names


def _remove_stale(out: Path) -> None:
    """Remove the working directories of exports to `out` that were killed at least a day ago."""
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(partial{'|old' if out.exists() else ''})")
    for home in (out.parent, out):
        with suppress(OSError):  # missing, or not readable
            for entry in list(os.scandir(home)):
                oldest = time.time() - _STALE_SECONDS
                if name.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    shutil.rmtree(entry.path, ignore_errors=True)


def _publish(work: Path, out: Path, overwrite: bool, source: Path, owned: Owned, last: str) -> None:
    """Move `work` to `out`; the old content is deleted when the new one is in place."""
    if work.parent == out:
        _move_up(work, out, last)
    elif _content(out, overwrite, source, owned):  # checked again, because the export took minutes
        old = work.with_suffix(".old")
        try:
            os.rename(out, old)
            os.rename(work, out)
        except BaseException:
            with suppress(OSError):  # `out` was not moved yet, or is already replaced
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(work, out)


def _move_up(work: Path, out: Path, last: str) -> None:
    """Move the files of `work` into its parent directory `out`, the file `last` after all others."""
    if strange := sorted(set(os.listdir(out)) - {work.name}):
        raise ExportError(f"{out} was empty and now holds {strange[0]!r}; choose another name, nothing was kept")
    names = sorted(os.listdir(work), key=lambda name: name == last)
    try:
        for name in names:
            os.rename(work / name, out / name)
    except BaseException:
        for name in names:
            (out / name).unlink(missing_ok=True)
        raise
