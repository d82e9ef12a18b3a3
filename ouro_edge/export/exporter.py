"""Turns a checkpoint into a bundle: all or nothing. Knows the readers, the graphs and the layout of a bundle.

Everything is written into a hidden directory beside the destination, the manifest last, and renamed at the end; a
failed or interrupted export removes it, and a killed one leaves a directory that nothing takes for a model.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ouro_edge.bundle import BLOCK_FILES, DATA_FILE, HEAD_FILE, MANIFEST_FILE, Manifest, StoredTensor, sha256
from ouro_edge.errors import ExportError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.data_file import DataFile, store
from ouro_edge.export.graph import block_graph, head_graph
from ouro_edge.export.model_card import model_card
from ouro_edge.quant import Recipe
from ouro_edge.version import __version__
from ouro_edge.weights import fused_names

Progress = Callable[[int, int, str], None]  # weights done, weights in all, name of the tensor at hand


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle to the directory `out`.

    `source` says where the checkpoint came from (repository, revision). Peak memory is a few times the largest packed
    tensor. Raises ExportError when `out` is taken or cannot be written, CheckpointError when a tensor is damaged.
    """
    with _fresh_directory(out, overwrite) as work:
        with DataFile(work / DATA_FILE) as data:
            tensors = _store_all(data, checkpoint, recipe, progress)
            files = {DATA_FILE: data.finish()}
        for kv, name in BLOCK_FILES.items():
            (work / name).write_bytes(block_graph(checkpoint.config, tensors, kv).SerializeToString())
        (work / HEAD_FILE).write_bytes(head_graph(checkpoint.config, tensors).SerializeToString())
        for name, content in checkpoint.files.items():
            (work / name).write_bytes(content)
        origin = {"path": checkpoint.path.name, "tensor_types": dict(checkpoint.tensor_types), **(source or {})}
        manifest = Manifest(
            name=checkpoint.name,
            source=origin,
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
        (work / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _store_all(
    data: DataFile, checkpoint: Checkpoint, recipe: Recipe, progress: Progress | None
) -> dict[str, StoredTensor]:
    weights, tensors = checkpoint.weights, {}
    counts = {name: sum(_elements(weights.shapes[part]) for part in parts)
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


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@contextmanager
def _fresh_directory(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `out` that becomes `out` when the block ends well, and is gone when it does not."""
    taken = out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir())))
    if taken and not overwrite:
        raise ExportError(f"{out} exists and is not empty; remove it, choose another name or pass --overwrite")
    if taken and not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} is no exported model, so it is not overwritten; choose another name")
    work = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        work.mkdir(parents=True)
        yield work
        _replace(work, out)
    except OSError as problem:
        raise ExportError(f"{out} cannot be written: {problem}; nothing was kept") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, out: Path) -> None:
    """Move `work` to `out`; what was there before is deleted only when its successor is in place."""
    old = work.with_suffix(".old")
    had = out.exists()
    if had:
        os.rename(out, old)
    try:
        os.rename(work, out)
    except OSError:
        if had:
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
