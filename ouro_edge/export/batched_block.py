"""The batched block of any bundle, over its own weights or over those of a prefill copy, as a graph in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ouro_edge.bundle.batched_graphs import BatchedGraphs
from ouro_edge.bundle.bundle import Bundle, GraphInMemory
from ouro_edge.bundle.directory import DirectoryBundle
from ouro_edge.bundle.prefill_copy import prefill_graph
from ouro_edge.bundle.tensors import ArraySpec, TensorSpec
from ouro_edge.export.gguf.gguf_bundle import GgufBundle
from ouro_edge.export.graphs.batched_graph import batched_block_graph
from ouro_edge.export.graphs.batched_prefill_graph import batched_prefill_graph
from ouro_edge.system.progress import Progress


def batched_block(bundle: Bundle, kv: str, slots: int, progress: Progress | None = None) -> GraphInMemory:
    """The graph of one loop over up to `slots` caches (1, 2, 4, 8 or 16) of type `kv`."""
    if isinstance(bundle, GgufBundle):
        return bundle.batched_graph(kv, slots, progress)
    assert isinstance(bundle, DirectoryBundle)
    stored = bundle.manifest.tensors
    tensors = {
        name: TensorSpec(
            tensor.shape, tensor.scheme, {part: ArraySpec(a.dtype, a.shape) for part, a in tensor.parts.items()}
        )
        for name, tensor in stored.items()
    }
    model = batched_block_graph(bundle.config, tensors, kv, slots)
    arrays = {}
    for initializer in model.graph.initializer:
        if initializer.data_location == initializer.EXTERNAL:
            tensor, _, part = initializer.name.rpartition(".")
            arrays[initializer.name] = bundle.array(stored[tensor].parts[part])
    return GraphInMemory(bundle.path, model.SerializeToString(), arrays)


def batched_prefill(bundle: Bundle, kv: str, copy: Path, slots: int) -> GraphInMemory:
    """The same graph over the weights of a prefill copy, which are mapped from the directory `copy`."""
    files = prefill_graph(copy, kv)
    assert files.data is not None
    parts: dict[str, dict[str, ArraySpec]] = {}
    arrays: dict[str, Any] = {}
    for initializer in onnx.load(files.source, load_external_data=False).graph.initializer:
        if initializer.data_location == initializer.EXTERNAL:
            tensor, _, part = initializer.name.rpartition(".")
            dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type), tuple(initializer.dims)
            parts.setdefault(tensor, {})[part] = ArraySpec(dtype.name, shape)
            offset = next(int(entry.value) for entry in initializer.external_data if entry.key == "offset")
            arrays[initializer.name] = np.memmap(files.data, dtype, "r", offset, shape)
    tensors = {name: _copied(bundle, name, found) for name, found in parts.items()}
    model = batched_prefill_graph(bundle.config, tensors, kv, slots)
    return GraphInMemory(files.source, model.SerializeToString(), arrays)


def _copied(bundle: Bundle, name: str, parts: dict[str, ArraySpec]) -> TensorSpec:
    """A tensor of a copy: columns [K, N], or unquantised values as in the bundle."""
    if "columns" not in parts:
        return TensorSpec(parts["values"].shape, None, parts)
    scheme = next(tensor.scheme for tensor in bundle.tensors.values() if tensor.scheme is not None)
    return TensorSpec(parts["columns"].shape[::-1], scheme, parts)


def batched_graphs(bundle: Bundle, slots: int, progress: Progress | None = None) -> BatchedGraphs:
    """Builders of both graphs of a bundle."""
    return BatchedGraphs(
        slots,
        lambda kv: batched_block(bundle, kv, slots, progress),
        lambda kv, copy: batched_prefill(bundle, kv, copy, slots),
    )
