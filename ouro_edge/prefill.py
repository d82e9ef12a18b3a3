"""Decides which way long prompts go, and has the weights for the fast way made once a machine.

fast    a second copy of the block with a byte a weight, two to three times as fast; kept in the user's cache
lean    the bundle's own weights only
auto    fast where it was measured to pay (int4 of 512 MiB and more, Linux on x86-64 with VNNI) and memory is
        plentiful, else lean
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from ouro_edge.bundle import DATA_FILE, Bundle
from ouro_edge.cache import cache_directory
from ouro_edge.errors import ExportError, RequestError
from ouro_edge.many_rows_files import VERSION, block_tensors, is_complete, many_rows_bytes
from ouro_edge.runtime.memory import available_memory

Progress = Callable[[int, int, str], None]

_SMALLEST = 512 << 20  # bytes: smaller models are fast enough as they are
_PLENTY = 3  # times the copy's size must be free before it is made and used unasked


def many_rows_for(bundle: Bundle, prefill: str, progress: Progress | None = None) -> Path | None:
    """Where the copy for long prompts lies, made if it has to be; None for the lean way.

    RequestError for an unknown way, or when fast was asked for and this CPU or model cannot; ExportError when the copy
    cannot be written.
    """
    if prefill not in ("auto", "fast", "lean"):
        raise RequestError(f"prefill is {prefill!r}; wanted auto, fast or lean")
    if prefill == "lean" or (prefill == "auto" and not _pays(bundle)):
        return None
    if not many_rows_bytes(bundle):
        raise RequestError("--prefill fast is for models in int4 or int8; this one computes in float32: use lean")
    path = cache_directory() / f"prefill-{_key(bundle)}"
    if not is_complete(path):
        if prefill == "auto" and _free_disk() < 2 * many_rows_bytes(bundle):
            return None
        try:
            _write(bundle, path, progress)
        except ExportError:
            if prefill == "fast":
                raise
            return None  # nobody asked for it
    from ouro_edge.runtime.many_rows import multiplies_exactly

    if not multiplies_exactly(path):
        if prefill == "fast":
            raise RequestError("--prefill fast needs a CPU that multiplies int8 exactly (VNNI): use lean")
        return None
    return path


def _write(bundle: Bundle, path: Path, progress: Progress | None) -> None:
    try:
        from ouro_edge.export.many_rows import write_many_rows
    except ImportError as missing:  # an app may come without what exports
        raise ExportError(f"--prefill fast needs {missing.name} to make its copy of the weights: use lean") from None
    write_many_rows(bundle, path, progress)


def _pays(bundle: Bundle) -> bool:
    size, free = many_rows_bytes(bundle), available_memory()
    bits = {t.scheme.bits for name in block_tensors(bundle) if (t := bundle.manifest.tensors[name]).scheme is not None}
    return platform.machine() in ("x86_64", "AMD64") and bits == {4} and size >= _SMALLEST and free >= _PLENTY * size


def _free_disk() -> int:
    path = cache_directory()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _key(bundle: Bundle) -> str:
    """A name that changes when the weights do."""
    return sha256(repr((bundle.manifest.files[DATA_FILE]["sha256"], VERSION)).encode()).hexdigest()[:16]
