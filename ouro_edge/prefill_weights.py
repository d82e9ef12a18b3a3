"""Decides whether long prompts use the prefill copy, and creates the copy once per machine.

int8    a copy of the block's weights with one byte each, two to three times as fast for prompts; stored in the cache
none    only the bundle's weights
auto    int8 if `AutoRule` expects a gain, otherwise none
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from ouro_edge.arch.weights import block_tensors
from ouro_edge.bundle.bundle import Bundle, GraphFile
from ouro_edge.bundle.prefill_copy import PROBE_FILE, VERSION, is_complete, prefill_copy_bytes
from ouro_edge.errors import ExportError, OuroEdgeError, RequestError, one_line
from ouro_edge.system.cache_dir import cache_directory, discard_entry, older_entries, record_use
from ouro_edge.system.file_lock import file_lock
from ouro_edge.system.memory import available_memory
from ouro_edge.system.progress import Progress

_OLD_NAMES = {"fast": "int8", "lean": "none"}


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of a computer that `auto` depends on."""

    architecture: str  # from platform.machine()
    free_memory: int  # bytes


def this_machine() -> Machine:
    """The properties of this computer."""
    return Machine(platform.machine(), available_memory())


@dataclass(frozen=True, slots=True)
class AutoRule:
    """The rule of `auto`: large int4 blocks on x86-64 with sufficient free memory."""

    architectures: frozenset[str] = frozenset({"x86_64", "AMD64"})
    bits: frozenset[int] = frozenset({4})
    min_copy_bytes: int = 512 << 20  # smaller models gain too little
    min_free_memory_to_copy_ratio: float = 3
    min_free_disk_to_copy_ratio: float = 2

    def pays(self, copy_bytes: int, bits: set[int], machine: Machine) -> bool:
        """Whether a copy of this size is worth its memory; `bits` are the bit widths of the block's codes."""
        return (
            machine.architecture in self.architectures
            and bool(bits)
            and bits <= self.bits
            and copy_bytes >= self.min_copy_bytes
            and machine.free_memory >= self.min_free_memory_to_copy_ratio * copy_bytes
        )

    def fits(self, copy_bytes: int, free_disk: int) -> bool:
        """Whether the disk has enough space for a new copy."""
        return free_disk >= self.min_free_disk_to_copy_ratio * copy_bytes


AUTO_RULE = AutoRule()


def prefill_copy_for(
    bundle: Bundle, choice: str, progress: Progress | None = None, *, rule: AutoRule = AUTO_RULE
) -> Path | None:
    """The directory of the prefill copy, which is created if necessary; None to use only the bundle's weights.

    `choice` is auto, int8 or none; `rule` decides for auto. RequestError for another choice, or for int8 with a model
    or CPU that cannot use the copy; ExportError for int8 when the copy cannot be written.
    """
    choice = check_prefill(choice)
    if choice == "none" or (choice == "auto" and not _pays(bundle, rule)):
        return None
    if not prefill_copy_bytes(bundle):
        raise RequestError("--prefill-weights int8 is for models in int4 or int8; this one computes in float32: use "
                           "none")  # fmt: skip
    try:
        return _copy(bundle, rule if choice == "auto" else None, progress)
    except (OuroEdgeError, OSError, RuntimeError) as problem:
        if choice == "auto":  # auto never fails because of the copy
            return None
        if isinstance(problem, OuroEdgeError):
            raise
        raise ExportError(
            f"the prefill copy cannot be stored: {one_line(problem)}; use --prefill-weights none"
        ) from None


def check_prefill(choice: str) -> str:
    """The choice as auto, int8 or none; fast and lean are the old names of the last two. RequestError otherwise."""
    if choice not in ("auto", "int8", "none", *_OLD_NAMES):
        raise RequestError(f"prefill_weights is {choice!r}; expected auto, int8 or none")
    return _OLD_NAMES.get(choice, choice)


def _pays(bundle: Bundle, rule: AutoRule) -> bool:
    tensors = (bundle.tensors[name] for name in block_tensors(bundle.tensors))
    bits = {tensor.scheme.bits for tensor in tensors if tensor.scheme is not None}
    return rule.pays(prefill_copy_bytes(bundle), bits, this_machine())


def _copy(bundle: Bundle, rule: AutoRule | None, progress: Progress | None) -> Path | None:
    """The copy, created if necessary; None when `rule` finds too little disk space for it."""
    from ouro_edge.runtime.backend.prefill_session import multiplies_exactly

    path, source = cache_directory() / f"prefill-{_key(bundle)}", str(bundle.weights_file.resolve())
    if is_complete(path):
        if not multiplies_exactly(GraphFile(path / PROBE_FILE)):
            raise _inexact()
        record_use(path, source)
        return path
    if rule is not None and not rule.fits(prefill_copy_bytes(bundle), _free_disk()):
        return None
    try:
        from ouro_edge.export.prefill_copy import probe_in_memory, write_prefill_copy
    except ImportError as missing:  # an application can be built without the packages for export
        raise ExportError(
            f"--prefill-weights int8 needs {missing.name} to make its copy of the weights: use none"
        ) from None
    if not multiplies_exactly(probe_in_memory()):
        raise _inexact()
    with file_lock(path.with_name(f".{path.name}.lock")):
        if not is_complete(path):  # else another process has just made it
            write_prefill_copy(bundle, path, progress)
    record_use(path, source)
    for old in older_entries(path):
        discard_entry(old)
    return path


def discard_prefill_copy(bundle: Bundle) -> None:
    """Delete the prefill copy of a bundle that is about to be deleted."""
    discard_entry(cache_directory() / f"prefill-{_key(bundle)}")


def _inexact() -> RequestError:
    return RequestError("--prefill-weights int8 needs a CPU that multiplies int8 exactly (VNNI): use none")


def _free_disk() -> int:
    path = cache_directory()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _key(bundle: Bundle) -> str:
    """A name that depends on the weights and on everything else in the graphs.

    The checksum of a large file is not verified when a bundle is opened, so properties of the file are part of it.
    """
    file = bundle.weights_file
    stat = file.stat()
    sizes = replace(bundle.config, max_positions=1, exit_threshold=1.0).to_dict()
    source = (str(file.resolve()), stat.st_size, stat.st_mtime_ns, bundle.weights_id)
    return sha256(repr((source, sorted(sizes.items()), VERSION)).encode()).hexdigest()[:16]
