"""A bundle whose products round no activations, so that its outputs can be compared closely with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle, Embedding, Graph, GraphInMemory
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.system.progress import Progress

_FLOAT_COMPUTE = 0  # accuracy_level of MatMulNBits


class FloatActivations(Bundle):
    """Another bundle's weights and text; MatMulNBits multiplies its weights with activations in float32.

    Slower by several times, and exact up to the order of sums. Only graphs of MatMulNBits are changed: a prefill copy
    rounds activations in either case.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(
            name=bundle.name,
            path=bundle.path,
            config=bundle.config,
            weights_id=bundle.weights_id,
            tensors=bundle.tensors,
        )
        self._bundle = bundle

    @property
    def directory(self) -> Path | None:
        return self._bundle.directory

    @property
    def weights_file(self) -> Path:
        return self._bundle.weights_file

    def block_graph(self, kv: str, progress: Progress | None = None, stack: str = BLOCK) -> Graph:
        return self._changed(self._bundle.block_graph(kv, progress, stack))

    def head_graph(self, progress: Progress | None = None) -> Graph:
        return self._changed(self._bundle.head_graph(progress))

    def _changed(self, graph: Graph) -> GraphInMemory:
        model = onnx.load_from_string(graph.model) if isinstance(graph, GraphInMemory) else _read(graph.source)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = _FLOAT_COMPUTE
        arrays: Mapping[str, NDArray[Any]] = graph.arrays
        return GraphInMemory(graph.source, model.SerializeToString(), arrays, graph.data)

    def embedding(self) -> Embedding:
        return self._bundle.embedding()

    def values(self, name: str) -> Array:
        return self._bundle.values(name)

    def rows(self, name: str, first: int, last: int) -> Array:
        return self._bundle.rows(name, first, last)

    def text(self, name: str) -> str | None:
        return self._bundle.text(name)

    def fitted_gate(self) -> FittedGate | None:
        return self._bundle.fitted_gate()

    @property
    def has_kv_ranges(self) -> bool:
        return self._bundle.has_kv_ranges

    def kv_ranges(self) -> Array | None:
        return self._bundle.kv_ranges()


def _read(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)
