"""Where this program keeps what it can make again, and what lies there. Knows the platform's habits and our names."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ouro_edge.errors import RequestError

# Conversions, copies for long prompts, and what was left of either when it was killed. The directory may be one that
# holds other things too, so nothing else counts as ours.
_OURS = re.compile(
    r"prefill-[0-9a-f]{16}(\.partial-\w+)?|.+-int4-[0-9a-f]{12}|\..+-int4-[0-9a-f]{12}\.[0-9a-f]{8}\.(partial|old)"
)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One directory in the cache."""

    path: Path
    size: int  # bytes
    used: float  # seconds since 1970: the last access to its files that the file system has recorded


def cache_directory() -> Path:
    """OURO_EDGE_CACHE, else the platform's cache folder."""
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
    """What is ours in the cache, last used first; links are not followed and not ours. RequestError if unreadable."""
    directory = cache_directory()
    try:
        found = [e for e in os.scandir(directory) if e.is_dir(follow_symlinks=False) and _OURS.fullmatch(e.name)]
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise RequestError(f"{directory} cannot be read: {problem.strerror}") from None
    entries = []
    for path in (Path(e.path) for e in found):
        with suppress(FileNotFoundError):  # a conversion that has just ended
            entries.append(_entry(path))
    return sorted(entries, key=lambda entry: -entry.used)


def remove_entry(entry: CacheEntry) -> None:
    """Delete an entry of `cache_entries`. RequestError when it cannot be deleted."""
    try:
        shutil.rmtree(entry.path)
    except OSError as problem:
        raise RequestError(f"{entry.path} cannot be deleted: {problem.strerror or problem}") from None


def _entry(path: Path) -> CacheEntry:
    files = [os.lstat(os.path.join(root, name)) for root, _, names in os.walk(path) for name in names]
    used = max((max(file.st_atime, file.st_mtime) for file in files), default=0.0)
    return CacheEntry(path, sum(file.st_size for file in files), used)
