"""Writes a checkpoint as a bundle, all or nothing.

All files are written to a hidden directory, the manifest last, and the directory is renamed at the end
(`output_directory`). A killed export leaves it without a manifest, so it is not mistaken for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from ouro_edge.export.output_directory import fresh_directory
from ouro_edge.quant import Recipe, Rounded
from ouro_edge.system.progress import Progress
from ouro_edge.version import __version__

Step = Callable[[DirectoryBundle], object]  # adds files to a bundle that lacks only its manifest


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
    with fresh_directory(out, checkpoint.path, _owned, last=MANIFEST_FILE, overwrite=overwrite) as work:
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


def _owned(path: Path) -> set[str] | None:
    """The files of the exported model in a directory, or None without a manifest."""
    if not (path / MANIFEST_FILE).is_file():
        return None
    listed = read_json_object(path / MANIFEST_FILE, ExportError).get("files")
    return {MANIFEST_FILE, *ADDED_FILES, *(listed if isinstance(listed, dict) else ())}
