"""Writes a checkpoint as a bundle, all or nothing.

All files are written to a hidden directory, the manifest last, and the directory is renamed at the end. A failed or
interrupted export removes it. A killed export leaves it without a manifest, so it is not mistaken for a model; a later
export to the same place removes it when it is a day old.
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

from ouro_edge.arch.json_object import read_json_object
from ouro_edge.arch.weights import fused_names
from ouro_edge.bundle.added_files import ADDED_FILES
from ouro_edge.bundle.directory import DATA_FILE, HEAD_FILE, MANIFEST_FILE, DirectoryBundle, graph_files, sha256
from ouro_edge.bundle.manifest import Manifest, StoredTensor
from ouro_edge.errors import BundleError, ExportError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.data_file import DataFile, store
from ouro_edge.export.graphs.block_graph import block_graph, head_graph
from ouro_edge.export.model_card import model_card
from ouro_edge.quant import Recipe, Rounded
from ouro_edge.system.files import parent_directories
from ouro_edge.system.progress import Progress
from ouro_edge.version import __version__

Step = Callable[[DirectoryBundle], object]  # adds files to a bundle that lacks only its manifest

_STALE_SECONDS = 24 * 3600  # age after which a working directory is abandoned


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    source: Mapping[str, Any] | None = None,
    rounded: Mapping[str, Rounded] | None = None,
    rounding: Mapping[str, Any] | None = None,
    steps: Sequence[Step] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle to the directory `out`.

    `source` is the origin of the checkpoint (repository, revision). `rounded` has the codes of matrices that were
    rounded before, `rounding` tells the manifest how; others are rounded to the nearest value. `steps` run in order on
    the finished bundle before it is published, and may add files to `bundle.path`; `progress` counts weights and covers
    the work before them. Peak memory is a few times the largest packed tensor. Raises ExportError when `out` exists or
    cannot be written, CheckpointError when a tensor is damaged. `overwrite` replaces an exported model, including its
    KV ranges and fitted gate, and deletes nothing else.
    """
    with _fresh_directory(out, overwrite, checkpoint.path) as work:
        manifest = _write(work, checkpoint, recipe, source or {}, rounded, rounding or {}, progress)
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
    work: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    source: Mapping[str, Any],
    rounded: Mapping[str, Rounded] | None,
    rounding: Mapping[str, Any],
    progress: Progress | None,
) -> Manifest:
    """Write all files of a bundle except the manifest, which is returned."""
    with DataFile(work / DATA_FILE) as data:
        tensors = _store_all(data, checkpoint, recipe, rounded, progress)
        files = {DATA_FILE: data.finish()}
    for name, (stack, kv) in graph_files(checkpoint.config).items():
        graph = block_graph(checkpoint.config, tensors, kv, stack=stack)
        (work / name).write_bytes(graph.SerializeToString())
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
        rounding=rounding,
    )
    (work / "README.md").write_text(model_card(manifest), encoding="utf-8")
    for file in sorted(work.iterdir()):
        if file.name not in files:
            files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    return manifest


def _store_all(
    data: DataFile,
    checkpoint: Checkpoint,
    recipe: Recipe,
    rounded: Mapping[str, Rounded] | None,
    progress: Progress | None,
) -> dict[str, StoredTensor]:
    weights, tensors = checkpoint.weights, {}
    counts = {name: sum(prod(weights.shapes[part]) for part in parts)
              for name, parts in fused_names(weights.config).items()}  # fmt: skip
    done, total = 0, sum(counts.values())
    for name, parts in fused_names(weights.config).items():
        if progress:
            progress(done, total, name)
        tensors[name] = store(data, weights, parts, recipe.scheme_for(name), rounded)
        done += counts[name]
    if weights.config.tie_word_embeddings and recipe.head != recipe.embedding:
        tensors["head"] = store(data, weights, ("embedding",), recipe.head)
    if progress:
        progress(total, total, "")
    return tensors


@contextmanager
def _fresh_directory(out: Path, overwrite: bool, source: Path) -> Iterator[Path]:
    """A working directory that is published as `out` at the end of the block; an error removes it and new parents.

    It is a sibling of `out`, or inside `out` when `out` is empty: that may be a mount point, which cannot be renamed.
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
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} is not an exported model, so it is not overwritten; choose another name")
    if source.resolve().is_relative_to(out):
        raise ExportError(f"{source} is inside {out}, which --overwrite would delete; choose another name")
    listed = read_json_object(out / MANIFEST_FILE, ExportError).get("files")
    expected = {MANIFEST_FILE, *ADDED_FILES, *(listed if isinstance(listed, dict) else ())}
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


def _publish(work: Path, out: Path, overwrite: bool, source: Path) -> None:
    """Move `work` to `out`; the old content is deleted when the new one is in place."""
    if work.parent == out:
        _move_up(work, out)
    elif _content(out, overwrite, source):  # checked again, because the export took minutes
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


def _move_up(work: Path, out: Path) -> None:
    """Move the files of `work` into its parent directory `out`, the manifest last."""
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
