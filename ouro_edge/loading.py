"""From what a user typed to a loaded model. Above export and runtime, which it brings together.

A bundle is opened as it is, and a .gguf file runs as it is: `export` builds its graphs in memory and `runtime` opens
them. A checkpoint is exported once into the user's cache and opened from there. So every command that
runs a model takes every MODEL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ouro_edge.bundle.bundle import MANIFEST_FILE, Bundle, is_bundle, open_bundle
from ouro_edge.bundle.fitted_gate import check_gate
from ouro_edge.bundle.kv_ranges import has_ranges
from ouro_edge.bundle.manifest import VERSION
from ouro_edge.errors import BundleError, CheckpointError, ExportError, RequestError, TemplateError, one_line
from ouro_edge.prefill_weights import check_prefill, prefill_copy_for
from ouro_edge.system.cache_dir import cache_directory
from ouro_edge.system.hub import Resolved, resolve

if TYPE_CHECKING:
    from ouro_edge.export.checkpoint import Checkpoint
    from ouro_edge.export.exporter import Progress
    from ouro_edge.quant import Recipe
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.text.tokenizer import Tokenizer

T = TypeVar("T")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    kv: str = "auto",
    kv_share: str = "none",
    context: int | None = None,
    gate: str = "auto",
    prefill: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """Load a model: an exported directory, a checkpoint directory, a .gguf file or a hub id; None: the built-in one.

    `threads` defaults to the number of CPUs that this process may use. A checkpoint is exported
    to int4 into the cache first, which takes a minute for 1.4B parameters; `progress` hears of it. `kv` is the type of
    the cache: fp32, int8, int4, or auto, which takes int8 where 4096 positions in float32 would take over a quarter of
    the free memory. `kv_share="last"` keeps one cache for all loops: a quarter of the memory, and no longer exact.
    `context` caps the positions below the model's own. `gate="original"` ignores a gate that was fitted to the bundle
    later. `prefill` is the way of long prompts: see `ouro_edge.prefill_weights`. Raises OuroEdgeError's kinds.
    """
    from ouro_edge.runtime.backend.kv_choice import check_kv, check_share
    from ouro_edge.runtime.backend.session import check_threads
    from ouro_edge.runtime.model import Model

    check_threads(threads)  # all before a conversion that takes a minute
    check_kv(kv), check_share(kv_share), check_gate(gate), check_prefill(prefill)
    if progress is not None and not callable(progress):
        raise RequestError(f"progress is {one_line(progress)}; wanted a function or None")
    bundle = open_runnable(runnable(model, progress), progress)
    bundle = bundle if context is None else bundle.with_context(context)
    prefill_copy = prefill_copy_for(bundle, prefill, progress)
    return Model(bundle, threads=threads, kv=kv, kv_share=kv_share, gate=gate, prefill_copy=prefill_copy)


def runnable(model: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """The exported directory or .gguf file that MODEL runs from; a checkpoint is exported first."""
    found = resolve(named_or_built_in(model))
    return found.path if is_gguf(found.path) or is_bundle(found.path) else exported(found, progress)


def named_or_built_in(model: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """MODEL, or the built-in model for None. RequestError when this build has none."""
    if model is None and (model := default_model()) is None:
        raise RequestError("this build has no model of its own: name an exported directory, a .gguf file or a hub id")
    return model


def open_runnable(path: Path, progress: Progress | None = None) -> Bundle:
    """Open what `runnable` returned."""
    if is_gguf(path):
        from ouro_edge.export.gguf.gguf_bundle import open_in_memory

        return open_in_memory(path, progress)
    return open_bundle(path)


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file rather than a directory."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def exported(found: Resolved, progress: Progress | None = None) -> Path:
    """The cached int4 bundle of a checkpoint, made when it is not there yet or its source has changed."""
    from ouro_edge.fitting.calibrate_kv import calibrate
    from ouro_edge.quant import preset

    out = cache_directory() / _key(found)
    try:
        bundle = open_bundle(out)
    except BundleError:
        shutil.rmtree(out, ignore_errors=True)  # absent or damaged: it is ours to make anew
        try:
            export_to(found, out, preset("int4"), progress=progress)
        except ExportError:
            if not is_bundle(out):  # somebody else was faster
                raise
    else:
        if not has_ranges(bundle):  # interrupted, the last time
            calibrate(bundle, progress=progress)
    return out


def export_to(
    found: Resolved,
    out: Path,
    recipe: Recipe,
    *,
    calibration: str | None = None,
    gate_from: Resolved | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Export a resolved checkpoint to the directory `out` and calibrate it; returns notes about the source.

    `calibration` is text to measure KV ranges on: None takes the built-in one, "" measures nothing. `gate_from` is a
    checkpoint whose exit gate a source without one gets.
    """
    from ouro_edge.export.exporter import export_bundle
    from ouro_edge.fitting.calibrate_kv import calibrate, calibration_ids

    if is_bundle(found.path):
        raise BundleError(f"{found.path} is an exported model already; export its checkpoint instead")
    checkpoint, source = _open_source(found, gate_from)
    if calibration:
        calibration_ids(_tokenizer_of(checkpoint), checkpoint.config.vocab_size, calibration)  # or refuse now
    export_bundle(checkpoint, out, recipe, source=source, overwrite=overwrite, progress=progress)
    if calibration != "":
        calibrate(open_bundle(out), calibration, progress=progress)
    return checkpoint.notes


def export_gguf(
    found: Resolved,
    out: Path,
    precision: str | None,
    *,
    gate_from: Resolved | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Write a checkpoint or a bundle as a GGUF file; returns its path and notes about it.

    An `out` not called .gguf is a directory, whose file is named after model and type. A bundle keeps its own number
    format, its fitted gate and its KV ranges; `precision` is for checkpoints, int4 unless told.
    """
    from ouro_edge.export.gguf.write_file import bundle_to_gguf, checkpoint_to_gguf

    if is_bundle(found.path):
        if precision is not None or gate_from is not None:
            raise RequestError(f"{found.path} is an exported model and keeps its number format and gate: leave out -p "
                               "and --gate-from, or export its checkpoint")  # fmt: skip
        return bundle_to_gguf(open_bundle(found.path), out, overwrite=overwrite, progress=progress)
    checkpoint, source = _open_source(found, gate_from)
    return checkpoint_to_gguf(
        checkpoint, out, precision or "int4", source=source, overwrite=overwrite, progress=progress
    )


def _open_source(found: Resolved, gate_from: Resolved | None) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint under its repository's name, with another checkpoint's gate if asked for, and where it came from."""
    from dataclasses import replace

    from ouro_edge.export.checkpoint import with_gate
    from ouro_edge.export.open_checkpoint import open_checkpoint
    from ouro_edge.runtime.text.chat_template import ChatTemplate

    checkpoint = open_checkpoint(found.path)
    _tokenizer_of(checkpoint)  # before the work begins
    _used(checkpoint, checkpoint.path / "chat_template.jinja", ChatTemplate)
    if gate_from is not None:
        checkpoint = with_gate(checkpoint, open_checkpoint(gate_from.path))
    if not found.repo_id:
        return checkpoint, {}
    checkpoint = replace(checkpoint, name=found.repo_id.rsplit("/", 1)[-1])
    return checkpoint, {"repo_id": found.repo_id, "revision": found.revision}


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer that comes with a checkpoint. CheckpointError when the exported model could not use it."""
    from ouro_edge.runtime.text.bundle_text import fitting_tokenizer

    path = checkpoint.path / "tokenizer.json"
    return _used(checkpoint, path, lambda text: fitting_tokenizer(text, checkpoint.config.vocab_size, path))


def _used(checkpoint: Checkpoint, path: Path, use: Callable[[str], T]) -> T | None:
    try:
        content = checkpoint.files.get(path.name)
        return None if content is None else use(content.decode())
    except (BundleError, TemplateError) as problem:
        where = "" if str(path) in str(problem) else f"{path}: "
        raise CheckpointError(f"{where}{problem}") from None
    except UnicodeDecodeError as problem:
        raise CheckpointError(f"{path} is no Unicode text: {problem}; fetch it again") from None


def default_model() -> Path | None:
    """The small model that ships with the package, None in a build without it."""
    path = Path(__file__).parent / "nano"
    return path if (path / MANIFEST_FILE).is_file() else None


def _key(found: Resolved) -> str:
    """A name that changes when the source does: its files' names, sizes and times."""
    path = found.path.resolve()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((str(path), found.revision, stats, VERSION)).encode()).hexdigest()[:12]
    name = found.repo_id.replace("/", "--") if found.repo_id else path.stem
    return f"{name}-int4-{digest}"
