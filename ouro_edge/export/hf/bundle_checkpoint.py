"""What is published as a checkpoint again: any source, with the exit gate that was fitted to it.

The tensors of an exported directory get their canonical names and are dequantised on reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.arch.weights import Array, FusedRows, Weights, fused_rows, tensor_shapes
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.directory import DirectoryBundle, is_bundle, open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.errors import CheckpointError, RequestError
from ouro_edge.export.checkpoint import Checkpoint, is_gguf, with_gate
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.huggingface import TEXT_FILES
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.system.hub import REPO_ID, Resolved


def open_to_publish(found: Resolved, gate_from: Resolved | None = None) -> tuple[Checkpoint, str | None]:
    """A source as a checkpoint with its fitted gate, and the repository that it comes from if that is known.

    `gate_from` is the source of a gate for a model without one. RequestError for an exported directory, which keeps its
    gate; other errors as for `open_checkpoint`, `open_bundle` and `with_gate`.
    """
    if is_bundle(found.path):
        if gate_from is not None:
            raise RequestError(f"{found.path} is an exported model and keeps its gate: leave out the other gate")
        bundle = open_bundle(found.path)
        checkpoint, gate, repository = (
            checkpoint_of(bundle),
            bundle.fitted_gate(),
            bundle.manifest.source.get("repo_id"),
        )
    else:
        checkpoint, repository = open_checkpoint(found.path), found.repo_id
        gate = open_gguf_bundle(found.path).fitted_gate() if is_gguf(found.path) else None
        if gate_from is not None:
            checkpoint = with_gate(checkpoint, open_checkpoint(gate_from.path))
    if gate is not None:
        checkpoint = with_fitted_gate(checkpoint, gate)
    return checkpoint, repository if isinstance(repository, str) and REPO_ID.fullmatch(repository) else None


def checkpoint_of(bundle: DirectoryBundle) -> Checkpoint:
    """The weights and text files of an exported directory, without its fitted gate."""
    shapes = tensor_shapes(bundle.config)
    readers = {name: _BundleReader(bundle, place, shapes[name]) for name, place in fused_rows(bundle.config).items()}
    types = bundle.manifest.source.get("tensor_types")
    return Checkpoint(
        path=bundle.path,
        name=bundle.name,
        config=bundle.config,
        weights=Weights(bundle.config, readers),
        files={name: text.encode() for name in TEXT_FILES if (text := bundle.text(name)) is not None},
        tensor_types=types if isinstance(types, Mapping) else {},
    )


def with_fitted_gate(checkpoint: Checkpoint, gate: FittedGate) -> Checkpoint:
    """The checkpoint with a fitted gate, and its threshold if it has one, in place of the original.

    CheckpointError when the model has no exit gate.
    """
    if not checkpoint.config.has_gate:
        raise CheckpointError(f"{checkpoint.path} has a fitted gate, but its family of models has no exit gate")
    readers = {name: checkpoint.weights.reader(name) for name in checkpoint.weights}
    readers |= {
        "exit_gate.weight": _Values(gate.weight[None]),
        "exit_gate.bias": _Values(np.array([gate.bias], np.float32)),
    }
    config, files = checkpoint.config, dict(checkpoint.files)
    if gate.threshold is not None:
        config = replace(config, exit_threshold=gate.threshold)
        data = parse_json_object(files["config.json"], str(checkpoint.path / "config.json"), CheckpointError)
        files["config.json"] = json.dumps({**data, "early_exit_threshold": gate.threshold}, indent=2).encode()
    return replace(checkpoint, config=config, weights=Weights(config, readers), files=files)


class _BundleReader:
    """Rows of a fused tensor, as float32."""

    def __init__(self, bundle: Bundle, place: FusedRows, shape: tuple[int, ...]) -> None:
        self._bundle, self._place, self.shape = bundle, place, shape

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop."""
        return self._bundle.rows(self._place.tensor, self._place.first + start, self._place.first + stop)


class _Values:
    """A small tensor in memory."""

    def __init__(self, values: Array) -> None:
        self._values, self.shape = values, values.shape

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop."""
        return self._values[start:stop].copy()
