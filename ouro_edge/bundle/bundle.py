"""The interface of a model that the runtime can open: config, weights, graphs, text, fitted gate, KV ranges.

Two implementations: `bundle.directory` (an exported directory) and `export.gguf.gguf_bundle` (a .gguf file). Imports
neither onnx nor onnxruntime.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.tensors import TensorSpec
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.system.progress import Progress

if TYPE_CHECKING:
    from ouro_edge.bundle.fitted_gate import FittedGate


MIDDLE_POINTS = "middle_points"  # begins the names of the zero points that graphs give symmetric 4-bit weights
SLOT_COUNTS = (1, 2, 4, 8, 16)  # groups that the branches of a batched graph compute


def cache_head_dim(config: ModelConfig) -> int:
    """Width of a head in the KV inputs: the kernel requires a multiple of 16, so other widths are padded with zeros."""
    return -(-config.head_dim // 16) * 16


@dataclass(frozen=True, slots=True)
class GraphFile:
    """An ONNX graph on disk."""

    source: Path
    data: Path | None = None  # the file with the weights, if they are in a separate file
    symmetric_int4: bool = False  # whether it has symmetric 4-bit weights

    @property
    def model(self) -> str:
        """The argument for onnxruntime: the name of the file."""
        return str(self.source)

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Initializers to pass to onnxruntime: none, because the graph names the file and offset of each."""
        return {}

    @property
    def weights_bytes(self) -> int:
        """Size of the weights; 0 without such a file."""
        return self.data.stat().st_size if self.data is not None and self.data.is_file() else 0

    @property
    def lacks_zero_points(self) -> bool:
        """Whether its symmetric 4-bit weights have no explicit zero points, as in early exports."""
        return self.symmetric_int4 and MIDDLE_POINTS.encode() not in self.source.read_bytes()


@dataclass(frozen=True, slots=True)
class GraphInMemory:
    """An ONNX graph that is not stored in a file; its weights are arrays in memory, or in a file.

    The arrays may be released when the session is open: onnxruntime has copied them.
    """

    source: Path  # origin, for messages
    model: bytes  # ONNX; every array is an external initializer of the same name
    arrays: Mapping[str, NDArray[Any]]
    data: Path | None = None  # the file that other external initializers name, with their offsets

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        in_file = self.data.stat().st_size if self.data is not None and self.data.is_file() else 0
        return in_file + sum(array.nbytes for array in self.arrays.values())

    @property
    def lacks_zero_points(self) -> bool:
        """False: such graphs are built by this version."""
        return False


Graph = GraphFile | GraphInMemory


class Embedding(Protocol):
    """The token embedding: ids [T] -> rows [T, C]. Reads only the rows that are requested."""

    def __call__(self, ids: NDArray[np.integer[Any]]) -> Array: ...


class Bundle(ABC):
    """A model that the runtime can open. Each method reads the files that it needs when it is called.

    Methods raise a one-line BundleError when the files are damaged, or CheckpointError for a checkpoint file.
    """

    notes: tuple[str, ...] = ()  # one line each: facts for the user about how this model runs

    def __init__(
        self, *, name: str, path: Path, config: ModelConfig, weights_id: str, tensors: Mapping[str, TensorSpec]
    ) -> None:
        self.name = name
        self.path = path  # for messages
        self.config = config
        self.weights_id = weights_id  # equal for equal weights; saved states and fitted gates refer to it
        self.tensors = tensors  # in the graphs' layout, by fused name

    def with_context(self, positions: int) -> Self:
        """The same model with a smaller context. RequestError when `positions` exceeds the model's own."""
        most = self.config.max_positions
        if type(positions) is not int or not 1 <= positions <= most:
            raise RequestError(f"context is {positions!r}; expected 1 to {most}, the positions of this model")
        other = copy.copy(self)
        other.config = replace(self.config, max_positions=positions)
        return other

    def with_state_noise(self, seed: int) -> Self:
        """The same model with a first state of noise. RequestError for a model that always starts from the same one."""
        if not self.config.state_std:
            raise RequestError("this model does not start from noise: leave --state-noise out")
        other = copy.copy(self)
        other.config = replace(self.config, state_seed=seed)
        return other

    def with_loops(self, loops: int) -> Self:
        """The same model with more loops than in its config. RequestError where the passes of a token are fixed."""
        if self.config.family.program is not None or self.config.loops == 1:
            raise RequestError(f"this model runs at most {self.config.most_loops} loops")
        other = copy.copy(self)
        other.config = replace(self.config, loops=loops)
        return other

    @property
    @abstractmethod
    def directory(self) -> Path | None:
        """The directory that a fitted gate and KV ranges are written to; None for a model that is a single file."""

    def writable_directory(self) -> Path:
        """The directory. BundleError for a model that is a single file."""
        if self.directory is None:
            raise BundleError(f"{self.path} is a single file, which cannot be extended: export it to a directory first")
        return self.directory

    @property
    @abstractmethod
    def weights_file(self) -> Path:
        """The file that holds the weights."""

    @abstractmethod
    def block_graph(self, kv: str, progress: Progress | None = None, stack: str = BLOCK) -> Graph:
        """The graph of a stack over a KV cache of type `kv`; `progress` is called while weights are repacked."""

    @abstractmethod
    def head_graph(self, progress: Progress | None = None) -> Graph:
        """The graph of the head."""

    @abstractmethod
    def embedding(self) -> Embedding:
        """The token embedding."""

    @abstractmethod
    def values(self, name: str) -> Array:
        """A whole tensor as float32, dequantised if necessary."""

    @abstractmethod
    def rows(self, name: str, first: int, last: int) -> Array:
        """Rows [last - first, K] of a matrix as float32."""

    @abstractmethod
    def text(self, name: str) -> str | None:
        """The content of a text file such as tokenizer.json; None when the model has no such file."""

    @abstractmethod
    def fitted_gate(self) -> FittedGate | None:
        """The exit gate that was fitted to this model, or None."""

    @property
    @abstractmethod
    def has_kv_ranges(self) -> bool:
        """Whether the model is calibrated for a quantised KV cache."""

    @abstractmethod
    def kv_ranges(self) -> Array | None:
        """The ranges [R, L, 2, KV, D] of keys and values; None when the model is not calibrated."""
