"""Runs a .gguf file without an exported directory.

Weights are read and repacked for each requested graph and then released, because onnxruntime has its own copy. Rows of
the embedding are read from the file when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle, Embedding, GraphInMemory
from ouro_edge.bundle.fitted_gate import FittedGate, check_numbers
from ouro_edge.bundle.kv_ranges import check_ranges
from ouro_edge.errors import BundleError, CheckpointError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.graph_arrays import (
    blank_arrays,
    exact_by_default,
    fill,
    fused_groups,
    run_types,
    tensor_specs,
    type_changes,
)
from ouro_edge.export.gguf.header import Header, read_header
from ouro_edge.export.gguf.own_metadata import KV_RANGES, read_fitted_gate, read_kv_ranges
from ouro_edge.export.gguf.reader import GgufReader, open_gguf
from ouro_edge.export.gguf.source import SourceFile
from ouro_edge.export.graphs.batched_graph import batched_block_graph
from ouro_edge.export.graphs.block_graph import block_graph, head_graph
from ouro_edge.system.cpus import available_threads
from ouro_edge.system.memory import available_memory
from ouro_edge.system.progress import Progress

_REPACK_THREADS = 4  # each thread has a piece of a tensor in several forms
_SAMPLE_BYTES = 1 << 10  # per tensor, for the digest of the weights


def open_gguf_bundle(path: Path, tokenizer: Path | None = None, exact: bool | None = None) -> GgufBundle:
    """A .gguf file, ready for the runtime, which reads no other file of that name later.

    `tokenizer` is a tokenizer.json, or a directory with one. `exact` runs F16, BF16 and other types without codes in
    float32 (True) or as Q8_0 (False); None: by their size. ConfigError or CheckpointError as for `open_gguf`.
    """
    source = SourceFile(path)
    header = read_header(source)
    return GgufBundle(open_gguf(path, header, source, tokenizer), header, source, exact)


class GgufBundle(Bundle):
    """A .gguf file with the interface of a bundle."""

    def __init__(
        self, checkpoint: Checkpoint, header: Header, source: SourceFile | None = None, exact: bool | None = None
    ) -> None:
        self._weights, self._files = checkpoint.weights, checkpoint.files
        if exact is None:
            exact = exact_by_default(checkpoint.weights, available_memory())
        self._kinds = run_types(checkpoint.weights, exact)
        self._groups = fused_groups(checkpoint.weights, self._kinds)
        super().__init__(
            name=checkpoint.name,
            path=checkpoint.path,
            config=checkpoint.config,
            weights_id=_weights_id(source or SourceFile(checkpoint.path), header),
            tensors=tensor_specs(checkpoint.weights, self._groups, self._kinds),
        )
        self._gate = read_fitted_gate(header.metadata, checkpoint.config)
        self._ranges = read_kv_ranges(header.metadata, checkpoint.config)
        changes = type_changes(checkpoint.weights, self._kinds)
        self.notes = (*checkpoint.notes, *([changes] if changes else []))

    @property
    def directory(self) -> None:
        return None

    @property
    def weights_file(self) -> Path:
        return self.path

    def block_graph(self, kv: str, progress: Progress | None = None, stack: str = BLOCK) -> GraphInMemory:
        return self._repacked(block_graph(self.config, self.tensors, kv, stack=stack), progress)

    def batched_graph(self, kv: str, slots: int, progress: Progress | None = None, stack: str = BLOCK) -> GraphInMemory:
        """A stack over up to `slots` caches in one call."""
        return self._repacked(batched_block_graph(self.config, self.tensors, kv, slots, stack), progress)

    def head_graph(self, progress: Progress | None = None) -> GraphInMemory:
        return self._repacked(head_graph(self.config, self.tensors), progress)

    def _repacked(self, graph: onnx.ModelProto, progress: Progress | None) -> GraphInMemory:
        """A graph in memory, with the arrays that it reads."""
        external = [one for one in graph.graph.initializer if one.data_location == one.EXTERNAL]
        used = {one.name.rpartition(".")[0] for one in external}
        names = [name for name in self.tensors if name in used]
        arrays = blank_arrays(self.tensors, names)
        with ThreadPoolExecutor(min(available_threads(), _REPACK_THREADS), "repack") as pool:  # NumPy releases the GIL
            work = pool.map(self._fill(arrays), names)
            for done, _ in enumerate(work, start=1):
                if progress is not None:
                    progress(done, len(names), names[done - 1])
        return GraphInMemory(self.path, graph.SerializeToString(), arrays)

    def _fill(self, arrays: dict[str, NDArray[Any]]) -> Callable[[str], None]:
        def fill_one(name: str) -> None:
            parts = self._groups[name]
            fill(self._weights, name, parts, self._kinds[parts[0]], arrays)

        return fill_one

    def embedding(self) -> Embedding:
        reader = self._weights.reader("embedding")
        assert isinstance(reader, GgufReader)
        return GgufEmbedding(reader)

    def values(self, name: str) -> Array:
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, first: int, last: int) -> Array:
        pieces, start = [], 0
        for part in self._groups[name]:
            count = self._weights.shapes[part][0]
            low, high = max(first - start, 0), min(last - start, count)
            if low < high:
                pieces.append(self._weights.rows(part, low, high))
            start += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def text(self, name: str) -> str | None:
        content = self._files.get(name)
        return None if content is None else content.decode()

    def fitted_gate(self) -> FittedGate | None:
        if (gate := self._gate) is not None:
            source = f"the fitted gate in {self.path}"
            check_numbers(gate.weight.tolist(), gate.bias, gate.threshold, self.config, source)
        return gate

    @property
    def has_kv_ranges(self) -> bool:
        return self._ranges is not None

    def kv_ranges(self) -> Array | None:
        try:
            if self._ranges is not None:
                check_ranges(self._ranges, self.config)
        except ValueError as problem:
            raise BundleError(f"{KV_RANGES} in {self.path} cannot be used, {problem}: export it to a directory, or "
                              "use --kv fp32") from None  # fmt: skip
        return self._ranges


class GgufEmbedding:
    """Rows of a tensor, read from the file and dequantised on demand."""

    def __init__(self, reader: GgufReader) -> None:
        self._reader = reader

    def __call__(self, ids: NDArray[np.integer[Any]]) -> Array:
        rows = self._reader.gather(ids)
        if not np.isfinite(rows).all():
            raise CheckpointError(f"embedding in {self._reader.file} holds values that are not finite")
        return rows


def _weights_id(source: SourceFile, header: Header) -> str:
    """A digest of the first bytes of every tensor; hashing whole tensors would double the loading time."""
    digest = sha256()
    with source.stream() as file:
        for tensor in header.tensors.values():
            file.seek(tensor.offset)
            digest.update(repr((tensor.name, tensor.type.name, tensor.shape)).encode())
            digest.update(file.read(min(_SAMPLE_BYTES, tensor.nbytes)))
    return digest.hexdigest()
