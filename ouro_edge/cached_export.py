"""The int4 conversion of a checkpoint in the user's cache, made when it is first needed.

Of several processes that need the same conversion one makes it, and the others wait. If it is killed, one of them
continues.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.manifest import VERSION
from ouro_edge.convert import export_directory
from ouro_edge.errors import BundleError, ExportError
from ouro_edge.quant import preset
from ouro_edge.system.cache_dir import cache_directory, record_use
from ouro_edge.system.file_lock import file_lock
from ouro_edge.system.hub import Resolved
from ouro_edge.system.progress import WAITING, Progress


def cached_export(found: Resolved, progress: Progress | None = None) -> Path:
    """The cached int4 export of a checkpoint, made if it is absent or damaged, or the source has changed.

    While another process makes it, `progress` is called once, with 0 of 1 steps done.
    """
    out, source = cache_directory() / _key(found), found.repo_id or str(found.path.resolve())

    def waiting() -> None:
        if progress is not None:
            progress(0, 1, WAITING)

    if not _is_usable(out):
        with file_lock(out.with_name(f".{out.name}.lock"), waiting):
            if not _is_usable(out):  # another process may have made it meanwhile
                shutil.rmtree(out, ignore_errors=True)  # damaged, and in the cache nothing is lost by that
                _export(found, out, progress)
    record_use(out, source)
    return out


def _export(found: Resolved, out: Path, progress: Progress | None) -> None:
    try:
        export_directory(found, out, preset("int4"), progress=progress)
    except ExportError:
        if not _is_usable(out):  # without locks, another process can have been faster
            raise


def _is_usable(path: Path) -> bool:
    try:
        return open_bundle(path).has_kv_ranges
    except BundleError:
        return False


def _key(found: Resolved) -> str:
    """A name that changes when the source does: its files' names, sizes and times."""
    path = found.path.resolve()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((str(path), found.revision, stats, VERSION)).encode()).hexdigest()[:12]
    name = found.repo_id.replace("/", "--") if found.repo_id else path.stem
    return f"{name}-int4-{digest}"
