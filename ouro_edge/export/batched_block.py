"""The batched block of any bundle, over its own weights or over those of a prefill copy, as a graph in memory."""

from __future__ import annotations

from pathlib import Path

import onnx

from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.bundle.batched_graphs import BatchedGraphs
from ouro_edge.bundle.bundle import Bundle, GraphInMemory
from ouro_edge.bundle.directory import DirectoryBundle
from ouro_edge.bundle.manifest import StoredArray, StoredTensor
from ouro_edge.bundle.prefill_copy import prefill_graph
from ouro_edge.export.gguf.gguf_bundle import GgufBundle
from ouro_edge.export.graphs.batched_graph import batched_block_graph
from ouro_edge.export.graphs.batched_prefill_graph import batched_prefill_graph
from ouro_edge.system.progress import Progress


def batched_block(
    bundle: Bundle, kv: str, slots: int, progress: Progress | None = None, stack: str = BLOCK
) -> GraphInMemory:
    """The graph of one pass over up to `slots` caches (1, 2, 4, 8 or 16) of type `kv`."""
    if isinstance(bundle, GgufBundle):
        return bundle.batched_graph(kv, slots, progress, stack)
    assert isinstance(bundle, DirectoryBundle)
    model = batched_block_graph(bundle.config, bundle.manifest.tensors, kv, slots, stack)
    return GraphInMemory(bundle.path, model.SerializeToString(), {}, bundle.weights_file)


def batched_prefill(bundle: Bundle, kv: str, copy: Path, slots: int, stack: str = BLOCK) -> GraphInMemory:
    """The same graph over the weights of a prefill copy, which is stored in the directory `copy`."""
    files = prefill_graph(copy, kv, stack)
    parts: dict[str, dict[str, StoredArray]] = {}
    for initializer in onnx.load(files.source, load_external_data=False).graph.initializer:
        if initializer.data_location == initializer.EXTERNAL:
            tensor, _, part = initializer.name.rpartition(".")
            dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type).name
            offset = next(int(entry.value) for entry in initializer.external_data if entry.key == "offset")
            parts.setdefault(tensor, {})[part] = StoredArray(dtype, tuple(initializer.dims), offset=offset)
    # Columns [K, N] are a matrix [N, K]; unquantised values have the shape of the tensor.
    tensors = {
        name: StoredTensor(
            arrays["columns"].shape[::-1] if "columns" in arrays else arrays["values"].shape, None, arrays
        )
        for name, arrays in parts.items()
    }
    model = batched_prefill_graph(bundle.config, tensors, kv, slots, stack)
    return GraphInMemory(files.source, model.SerializeToString(), {}, files.data)


def batched_graphs(bundle: Bundle, slots: int, progress: Progress | None = None) -> BatchedGraphs:
    """Builders of both graphs of a bundle."""
    return BatchedGraphs(
        slots,
        lambda kv, stack: batched_block(bundle, kv, slots, progress, stack),
        lambda kv, copy, stack: batched_prefill(bundle, kv, copy, slots, stack),
    )
