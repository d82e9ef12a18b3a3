"""Decides which way long prompts go, and has the weights for the fast way made once a machine.

fast    a second copy of the block with a byte a weight, two to three times as fast; kept in the user's cache
lean    the bundle's own weights only
auto    fast where it was measured to pay (int4 of 512 MiB and more, x86-64 with VNNI) and memory is plentiful,
        else lean
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ouro_edge.bundle.bundle import DATA_FILE, Bundle
from ouro_edge.bundle.prefill_copy import PROBE_FILE, VERSION, block_tensors, is_complete, prefill_copy_bytes
from ouro_edge.errors import ExportError, OuroEdgeError, RequestError, one_line
from ouro_edge.system.cache_dir import cache_directory
from ouro_edge.system.memory import available_memory

Progress = Callable[[int, int, str], None]

_SMALLEST = 512 << 20  # bytes: smaller models are fast enough as they are
_PLENTY = 3  # times the copy's size must be free before it is made and used unasked
_INEXACT = "--prefill fast needs a CPU that multiplies int8 exactly (VNNI): use lean"


def prefill_copy_for(bundle: Bundle, prefill: str, progress: Progress | None = None) -> Path | None:
    """Where the copy for long prompts lies, made if it has to be; None for the lean way.

    RequestError for an unknown way, or when fast was asked for and this CPU or model cannot; ExportError when fast was
    asked for and the copy cannot be written.
    """
    if check_prefill(prefill) == "lean" or (prefill == "auto" and not _pays(bundle)):
        return None
    if not prefill_copy_bytes(bundle):
        raise RequestError("--prefill fast is for models in int4 or int8; this one computes in float32: use lean")
    try:
        return _copy(bundle, prefill == "auto", progress)
    except (OuroEdgeError, OSError, RuntimeError) as problem:
        if prefill == "auto":  # nobody asked for it
            return None
        if isinstance(problem, OuroEdgeError):
            raise
        raise ExportError(f"the copy for long prompts has no place: {one_line(problem)}; use --prefill lean") from None


def check_prefill(prefill: str) -> str:
    """`prefill`, if it is one of the ways. RequestError otherwise."""
    if prefill not in ("auto", "int8", "none", "fast", "lean"):
        raise RequestError(f"prefill_weights is {prefill!r}; expected auto, int8 or none")
    return {"int8": "fast", "none": "lean"}.get(prefill, prefill)


def _copy(bundle: Bundle, frugal: bool, progress: Progress | None) -> Path | None:
    """The copy, made if it has to be; None when it would fill the disk and `frugal` is set."""
    from ouro_edge.runtime.backend.prefill_session import multiplies_exactly

    path = cache_directory() / f"prefill-{_key(bundle)}"
    if is_complete(path):
        if not multiplies_exactly(path / PROBE_FILE):
            raise RequestError(_INEXACT)
        return path
    if frugal and _free_disk() < 2 * prefill_copy_bytes(bundle):
        return None
    try:
        from ouro_edge.export.prefill_copy import probe_in_memory, write_prefill_copy
    except ImportError as missing:  # an app may come without what exports
        raise ExportError(f"--prefill fast needs {missing.name} to make its copy of the weights: use lean") from None
    if not multiplies_exactly(probe_in_memory()):
        raise RequestError(_INEXACT)
    write_prefill_copy(bundle, path, progress)
    return path


def _pays(bundle: Bundle) -> bool:
    size, free = prefill_copy_bytes(bundle), available_memory()
    bits = {t.scheme.bits for name in block_tensors(bundle) if (t := bundle.manifest.tensors[name]).scheme is not None}
    return platform.machine() in ("x86_64", "AMD64") and bits == {4} and size >= _SMALLEST and free >= _PLENTY * size


def _free_disk() -> int:
    path = cache_directory()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _key(bundle: Bundle) -> str:
    """A name that changes when the weights do, or what the graphs are built from.

    A large file's checksum is claimed and not looked at when a bundle is opened, so the file itself is named too.
    """
    file = bundle.path / DATA_FILE if bundle.path.is_dir() else bundle.path
    stat = file.stat()
    sizes = replace(bundle.config, max_positions=1, exit_threshold=1.0).to_dict()
    source = (str(file.resolve()), stat.st_size, stat.st_mtime_ns, bundle.manifest.files[DATA_FILE]["sha256"])
    return sha256(repr((source, sorted(sizes.items()), VERSION)).encode()).hexdigest()[:16]
