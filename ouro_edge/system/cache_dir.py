"""The cache directory on disk: location, listing, deletion. Everything in it can be regenerated."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import RequestError

# Conversions, prefill copies, and leftovers of either from a killed process, and a file of thread counts that earlier
# versions wrote. The directory may also contain files of other programs (OURO_EDGE_CACHE can name any directory), so
# nothing else is listed or deleted.
_ENTRY_NAME = re.compile(
    r"prefill-[0-9a-f]{16}(\.partial-\w+)?|.+-(int4|rounding)-[0-9a-f]{12}|\..+-int4-[0-9a-f]{12}\.[0-9a-f]{8}\.(partial|old)"
)
_OLD_TUNING, _OLD_TUNING_KEYS = "tune.json", {"version", "cpu", "cpus", "onnxruntime", "threads", "measured"}

_SOURCE_FILE = "cached_from.txt"  # in an entry: what it was made from; the time of the file is that of the last use


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One directory in the cache, or the old file of thread counts."""

    path: Path
    size: int  # bytes
    used: float  # seconds since 1970: the last recorded access to its files


def cache_directory() -> Path:
    """OURO_EDGE_CACHE if set, else the cache folder of the platform."""
    if own := os.environ.get("OURO_EDGE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ouro-edge"


def cache_entries() -> list[CacheEntry]:
    """Entries of this program, last used first; symbolic links are skipped. RequestError if the cache is unreadable."""
    directory = cache_directory()
    try:
        found = [e for e in os.scandir(directory) if _is_ours(e)]
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise RequestError(f"{directory} cannot be read: {problem.strerror}") from None
    entries = []
    for path in (Path(e.path) for e in found):
        with suppress(FileNotFoundError):  # removed meanwhile, such as the working directory of a conversion
            entries.append(_entry(path))
    return sorted(entries, key=lambda entry: -entry.used)


def remove_entry(entry: CacheEntry) -> None:
    """Delete an entry of `cache_entries`. RequestError when it cannot be deleted."""
    try:
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    except OSError as problem:
        raise RequestError(f"{entry.path} cannot be deleted: {problem.strerror or problem}") from None


def record_use(entry: Path, source: str) -> None:
    """Note that an entry made from `source` (a hub id or a path) is used now. Many file systems do not record reads."""
    with suppress(OSError):
        (entry / _SOURCE_FILE).write_text(source, encoding="utf-8", errors="surrogateescape")


def older_entries(entry: Path) -> list[Path]:
    """Entries of the same kind that were made from earlier states of the source of an entry with `record_use`."""
    source, length = _source_of(entry), len(entry.name)
    kind = entry.name.rstrip("0123456789abcdef")
    if source is None:
        return []
    with suppress(OSError):
        names = [found.name for found in os.scandir(entry.parent) if _is_ours(found)]
        same = [entry.parent / name for name in sorted(names) if len(name) == length and name.startswith(kind)]
        return [path for path in same if path != entry and _source_of(path) == source]
    return []


def discard_entry(entry: Path) -> None:
    """Delete an entry as a whole, or not at all while another process (on Windows) has its files open."""
    mark = secrets.token_hex(4)
    copy = entry.name.startswith("prefill-")
    hidden = entry.with_name(f"{entry.name}.partial-{mark}" if copy else f".{entry.name}.{mark}.old")
    with suppress(OSError):
        os.replace(entry, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _source_of(entry: Path) -> str | None:
    with suppress(OSError):
        return (entry / _SOURCE_FILE).read_text(encoding="utf-8", errors="surrogateescape")
    return None


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return _ENTRY_NAME.fullmatch(entry.name) is not None
    if entry.name != _OLD_TUNING or not entry.is_file(follow_symlinks=False):
        return False
    try:
        content = load_json(Path(entry).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == _OLD_TUNING_KEYS


def _entry(path: Path) -> CacheEntry:
    if path.is_dir():
        files = [os.lstat(os.path.join(root, name)) for root, _, names in os.walk(path) for name in names]
    else:
        files = [os.lstat(path)]
    used = max((max(file.st_atime, file.st_mtime) for file in files), default=0.0)
    return CacheEntry(path, sum(file.st_size for file in files), used)
