"""Writes a checkpoint as a bundle: a complete one, or nothing.

Everything is written into a hidden directory, the manifest last, and renamed at the end. A failed or interrupted
export removes it; a killed one leaves it without a manifest, so nothing takes it for a model, and the next export
after a day removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

from ouro_edge.arch.config import read_json_object
from ouro_edge.arch.weights import fused_names
from ouro_edge.bundle.added_files import ADDED_FILES
from ouro_edge.bundle.directory import BLOCK_FILES, DATA_FILE, HEAD_FILE, MANIFEST_FILE, DirectoryBundle, sha256
from ouro_edge.bundle.manifest import Manifest, StoredTensor
from ouro_edge.errors import BundleError, ExportError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.data_file import DataFile, store
from ouro_edge.export.graphs.block_graph import block_graph, head_graph
from ouro_edge.export.model_card import model_card
from ouro_edge.quant import Recipe
from ouro_edge.system.files import parent_directories
from ouro_edge.system.progress import Progress
from ouro_edge.version import __version__

Step = Callable[[DirectoryBundle], object]  # adds files to a bundle that is complete but for its manifest

_STALE = 24 * 3600  # seconds after which a working directory has no writer left


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    source: Mapping[str, Any] | None = None,
    steps: Sequence[Step] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle to the directory `out`.

    `source` says where the checkpoint came from (repository, revision). `steps` run in order on the finished bundle
    before it is published, and add files to `bundle.path`; `progress` covers what comes before them, in weights. Peak
    memory is a few times the largest packed tensor. Raises ExportError when `out` is taken or cannot be written,
    CheckpointError when a tensor is damaged. `overwrite` replaces an exported model, with its KV ranges and fitted
    gate, and deletes nothing else.
    """
    with _fresh_directory(out, overwrite, checkpoint.path) as work:
        manifest = _write(work, checkpoint, recipe, source or {}, progress)
        for step in steps:
            try:
                step(DirectoryBundle(work, manifest))
            except BundleError as problem:
                text = str(problem).replace(str(work), str(out))
                raise ExportError(
                    f"{out} was not written, because a step after the conversion failed: {text}"
                ) from None
        (work / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write(
    work: Path, checkpoint: Checkpoint, recipe: Recipe, source: Mapping[str, Any], progress: Progress | None
) -> Manifest:
    """Write all files of a bundle but the manifest, which is returned."""
    with DataFile(work / DATA_FILE) as data:
        tensors = _store_all(data, checkpoint, recipe, progress)
        files = {DATA_FILE: data.finish()}
    for kv, name in BLOCK_FILES.items():
        (work / name).write_bytes(block_graph(checkpoint.config, tensors, kv).SerializeToString())
    (work / HEAD_FILE).write_bytes(head_graph(checkpoint.config, tensors).SerializeToString())
    for name, content in checkpoint.files.items():
        (work / name).write_bytes(content)
    manifest = Manifest(
        name=checkpoint.name,
        source={"path": checkpoint.path.name, "tensor_types": dict(checkpoint.tensor_types), **source},
        created_by=f"ouro-edge {__version__}",
        recipe=recipe.name,
        model=checkpoint.config,
        tensors=tensors,
        files=files,
    )
    (work / "README.md").write_text(model_card(manifest), encoding="utf-8")
    for file in sorted(work.iterdir()):
        if file.name not in files:
            files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    return manifest


def _store_all(
    data: DataFile, checkpoint: Checkpoint, recipe: Recipe, progress: Progress | None
) -> dict[str, StoredTensor]:
    weights, tensors = checkpoint.weights, {}
    counts = {name: sum(prod(weights.shapes[part]) for part in parts)
              for name, parts in fused_names(weights.config).items()}  # fmt: skip
    done, total = 0, sum(counts.values())
    for name, parts in fused_names(weights.config).items():
        if progress:
            progress(done, total, name)
        tensors[name] = store(data, weights, parts, recipe.scheme_for(name))
        done += counts[name]
    if weights.config.tie_word_embeddings and recipe.head != recipe.embedding:
        tensors["head"] = store(data, weights, ("embedding",), recipe.head)
    if progress:
        progress(total, total, "")
    return tensors


@contextmanager
def _fresh_directory(out: Path, overwrite: bool, source: Path) -> Iterator[Path]:
    """A directory that becomes `out` when the block ends well; nothing of it is left, nor of new parents, if not.

    It is beside `out`, or inside where `out` is empty: that may be a mount point, which cannot be renamed.
    """
    out = Path(os.path.realpath(out))
    try:
        _remove_stale(out)
        home = out if _content(out, overwrite, source) == [] else out.parent
        work = home / f".{out.name}.{secrets.token_hex(4)}.partial"
        with parent_directories(work):
            try:
                work.mkdir()
                yield work
                _publish(work, out, overwrite, source)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as problem:
        raise ExportError(f"{out} cannot be written: {problem.strerror or problem}; nothing was kept") from None


def _content(out: Path, overwrite: bool, source: Path) -> list[str] | None:
    """The names in `out`, None when it is not there. ExportError when it holds what must not be deleted."""
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
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} is not an exported model, so it is not overwritten; choose another name")
    if source.resolve().is_relative_to(out):
        raise ExportError(f"{source} is inside {out}, which --overwrite would delete; choose another name")
    listed = read_json_object(out / MANIFEST_FILE, ExportError).get("files")
    ours = {MANIFEST_FILE, *ADDED_FILES, *(listed if isinstance(listed, dict) else ())}
    if strange := [name for name in names if name not in ours]:
        raise ExportError(f"{out} holds {strange[0]!r}, which is not part of the model there: move it or choose "
                          "another name")  # fmt: skip
    return names


def _remove_stale(out: Path) -> None:
    """Remove what exports to `out` left when they were killed, a day ago or longer."""
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(partial{'|old' if out.exists() else ''})")
    for home in (out.parent, out):
        with suppress(OSError):  # not there, or not ours to read
            for entry in list(os.scandir(home)):
                if name.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < time.time() - _STALE:
                    shutil.rmtree(entry.path, ignore_errors=True)


def _publish(work: Path, out: Path, overwrite: bool, source: Path) -> None:
    """Move `work` to `out`; what was there before is deleted only when its successor is in place."""
    if work.parent == out:
        _move_up(work, out)
    elif _content(out, overwrite, source):  # looked at again: minutes have passed
        old = work.with_suffix(".old")
        try:
            os.rename(out, old)
            os.rename(work, out)
        except BaseException:
            with suppress(OSError):  # it was not moved yet, or its successor was
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(work, out)


def _move_up(work: Path, out: Path) -> None:
    """Move the files of `work` into `out` around it, the manifest last."""
    if strange := sorted(set(os.listdir(out)) - {work.name}):
        raise ExportError(f"{out} was empty and now holds {strange[0]!r}; choose another name, nothing was kept")
    names = sorted(os.listdir(work), key=lambda name: name == MANIFEST_FILE)
    try:
        for name in names:
            os.rename(work / name, out / name)
    except BaseException:
        for name in names:
            (out / name).unlink(missing_ok=True)
        raise
