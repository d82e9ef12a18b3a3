"""From what a user typed to a loaded model. Above export and runtime, and the only place that knows both.

A bundle is opened as it is. A checkpoint or a .gguf file is exported once into the user's cache and opened from there,
so that every command takes every kind of MODEL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ouro_edge.bundle import MANIFEST_FILE, VERSION, open_bundle
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.hub import Resolved, resolve

if TYPE_CHECKING:
    from ouro_edge.export.exporter import Progress
    from ouro_edge.quant import Recipe
    from ouro_edge.runtime.model import Model


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    kv: str = "auto",
    kv_share: str = "none",
    context: int | None = None,
    gate: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """Load a model: an exported directory, a checkpoint directory, a .gguf file or a hub id; None: the built-in one.

    `threads` defaults to the CPUs that this process may use. What is no bundle yet is exported to int4 into the cache
    first, which takes a minute for 1.4B parameters; `progress` hears of it. `kv` is the type of the cache:
    fp32, int8, int4, or auto, which takes int8 where float32 would fill the memory. `kv_share="last"` keeps
    one cache for all loops: a quarter of the memory, and no longer exact. `context` caps the positions below
    the model's own. `gate="original"` ignores a gate that was fitted to the bundle later. Raises OuroEdgeError's kinds.
    """
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.session import check_threads

    check_threads(threads)  # before a conversion that takes a minute
    bundle = open_bundle(bundle_path(model, progress))
    bundle = bundle if context is None else bundle.with_context(context)
    return Model(bundle, threads=threads, kv=kv, kv_share=kv_share, gate=gate)


def bundle_path(model: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """The exported directory that `load` opens for MODEL, made first if need be."""
    if model is None and (model := default_model()) is None:
        raise RequestError("this build has no model of its own: name an exported directory, a .gguf file or a hub id")
    found = resolve(model)
    return found.path if (found.path / MANIFEST_FILE).is_file() else exported(found, progress)


def exported(found: Resolved, progress: Progress | None = None) -> Path:
    """The cached int4 bundle of a checkpoint, made when it is not there yet or its source has changed."""
    from ouro_edge.quant import preset

    out = cache_directory() / _key(found)
    try:
        open_bundle(out)
    except BundleError:
        shutil.rmtree(out, ignore_errors=True)  # absent or damaged: it is ours to make anew
        export_to(found, out, preset("int4"), progress=progress)
    return out


def export_to(
    found: Resolved,
    out: Path,
    recipe: Recipe,
    *,
    calibration: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Export a resolved checkpoint to the directory `out` and calibrate it; returns notes about the source.

    `calibration` is text to measure KV ranges on: None takes the built-in one, "" measures nothing.
    """
    from dataclasses import replace

    from ouro_edge.evaluation.calibrate import calibrate
    from ouro_edge.export.checkpoint import open_checkpoint
    from ouro_edge.export.exporter import export_bundle

    if (found.path / MANIFEST_FILE).is_file():
        raise BundleError(f"{found.path} is an exported model already; export its checkpoint instead")
    checkpoint = open_checkpoint(found.path)
    source: dict[str, Any] = {}
    if found.repo_id:
        checkpoint = replace(checkpoint, name=found.repo_id.rsplit("/", 1)[-1])
        source = {"repo_id": found.repo_id, "revision": found.revision}
    export_bundle(checkpoint, out, recipe, source=source, overwrite=overwrite, progress=progress)
    if calibration != "":
        calibrate(open_bundle(out), calibration, progress=progress)
    return checkpoint.notes


def default_model() -> Path | None:
    """The small model that ships with the package, None in a build without it."""
    path = Path(__file__).parent / "nano"
    return path if (path / MANIFEST_FILE).is_file() else None


def cache_directory() -> Path:
    """Where converted models are kept: OURO_EDGE_CACHE, else the platform's cache folder."""
    if own := os.environ.get("OURO_EDGE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ouro-edge"


def _key(found: Resolved) -> str:
    """A name that changes when the source does: its files' names, sizes and times."""
    path = found.path.resolve()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((str(path), found.revision, stats, VERSION)).encode()).hexdigest()[:12]
    name = found.repo_id.replace("/", "--") if found.repo_id else path.stem
    return f"{name}-int4-{digest}"
