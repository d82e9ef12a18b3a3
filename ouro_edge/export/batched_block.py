"""The batched block of any bundle, as a graph in memory over the bundle's own weights."""

from __future__ import annotations

from ouro_edge.bundle.bundle import Bundle, GraphInMemory
from ouro_edge.bundle.directory import DirectoryBundle
from ouro_edge.bundle.tensors import ArraySpec, TensorSpec
from ouro_edge.export.gguf.gguf_bundle import GgufBundle
from ouro_edge.export.graphs.batched_graph import batched_block_graph
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
