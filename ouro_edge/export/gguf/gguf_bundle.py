"""A .gguf file as a model that runs, without a bundle on disk. Knows the graphs, the repacking, and the bundle's face.

Q4_0, Q4_1 and Q8_0 are repacked exactly and F32 is taken as it is. Everything else (K-quants, F16, BF16, ...) is
brought to Q8_0, which a note says. Weights are read from the file whenever a graph is opened, and kept by nobody:
onnxruntime has its own copy, and the embedding is gathered from the file row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array, Weights, fused_names
from ouro_edge.bundle.bundle import BLOCK_FILES, DATA_FILE, HEAD_FILE, Bundle, Embedding, GraphInMemory
from ouro_edge.bundle.manifest import DTYPES, Manifest, StoredArray, StoredTensor
from ouro_edge.errors import CheckpointError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.header import Header, read_header
from ouro_edge.export.gguf.own_metadata import measured_files
from ouro_edge.export.gguf.reader import GgufReader, open_gguf
from ouro_edge.export.gguf.repack import BLOCK, EXACT, Parts, scheme
from ouro_edge.export.graphs.block_graph import block_graph, head_graph
from ouro_edge.system.cpus import available_threads
from ouro_edge.system.progress import Progress
from ouro_edge.version import __version__

_PIECE = 1 << 22  # values read from the file at a time
_WORKERS = 4  # each holds a piece in several forms
_SAMPLE = 1 << 10  # bytes of each tensor that go into the name of the weights


def open_in_memory(path: Path, progress: Progress | None = None) -> GgufBundle:
    """A .gguf file, ready for the runtime. ConfigError or CheckpointError as for `open_gguf`."""
    header = read_header(path)
    return GgufBundle(open_gguf(path, header), header, progress)


class GgufBundle(Bundle):
    """A .gguf file behind the interface of a bundle; arrays are made for a session and dropped."""

    def __init__(self, checkpoint: Checkpoint, header: Header, progress: Progress | None = None) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        self._homes = _homes(checkpoint.weights)
        weights_id = _weights_id(checkpoint.path, header)
        manifest = Manifest(
            name=checkpoint.name,
            source={"path": checkpoint.path.name, "tensor_types": dict(checkpoint.tensor_types)},
            created_by=f"ouro-edge {__version__}",
            recipe="gguf",
            model=checkpoint.config,
            tensors=_tensors(checkpoint.weights, self._homes),
            files={DATA_FILE: {"size": checkpoint.path.stat().st_size, "sha256": weights_id}},
        )
        super().__init__(checkpoint.path, manifest)
        self._measured = measured_files(header.metadata, checkpoint.config, weights_id)
        changes = _changes(checkpoint.weights)
        self.notes = (*checkpoint.notes, *([changes] if changes else []))

    def graph(self, name: str) -> GraphInMemory:
        """The block or the head, with its weights repacked."""
        tensors, progress = self.manifest.tensors, self._progress
        if name == HEAD_FILE:
            model, wanted = head_graph(self.config, tensors), ["head"]
        else:
            kv = next(kind for kind, file in BLOCK_FILES.items() if file == name)
            model, wanted = block_graph(self.config, tensors, kv), [tensor for tensor in tensors if tensor != "head"]
        arrays = _blank(
            {f"{tensor}.{part}": stored for tensor in wanted for part, stored in tensors[tensor].parts.items()}
        )
        with ThreadPoolExecutor(min(available_threads(), _WORKERS), "repack") as pool:  # outside Python's lock
            for done, _ in enumerate(pool.map(lambda tensor: self._fill(tensor, arrays), wanted), start=1):
                if progress is not None:
                    progress(done, len(wanted), wanted[done - 1])
        return GraphInMemory(self.path, model.SerializeToString(), arrays)

    @np.errstate(all="ignore")  # what is not finite is found at the end
    def _fill(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write one tensor of the graphs into its arrays, some rows at a time."""
        weights, shape, start = self._checkpoint.weights, self.manifest.tensors[name].shape, 0
        kind, step = _kind(weights, self._homes[name][0]), max(1, _PIECE // shape[-1])
        if kind != Q.F32:
            whole = Parts(arrays[f"{name}.packed"], arrays[f"{name}.scales"], arrays.get(f"{name}.offsets"))
        for part in self._homes[name]:
            reader, count = weights.reader(part), weights.shapes[part][0]
            for first in range(0, count, step):
                last = min(count, first + step)
                if kind == Q.F32:
                    arrays[f"{name}.values"][start + first : start + last] = weights.rows(part, first, last)
                elif isinstance(reader, GgufReader) and reader.type == kind:
                    whole.fill(kind, start + first, reader.raw(first, last))
                else:
                    whole.fill(kind, start + first, quantize(weights.rows(part, first, last), kind))
            start += count
        if kind != Q.F32 and not whole.finite():
            raise CheckpointError(f"{name} holds values that are not finite, or beyond float16: the file is damaged")

    def values(self, name: str) -> Array:
        """A whole tensor as float32."""
        return self.rows(name, 0, self.manifest.tensors[name].shape[0])

    def rows(self, name: str, first: int, last: int) -> Array:
        """Rows [last - first, ...] of a tensor as float32, as the file has them."""
        weights, pieces, start = self._checkpoint.weights, [], 0
        for part in self._homes[name]:
            count = weights.shapes[part][0]
            low, high = max(first - start, 0), min(last - start, count)
            if low < high:
                pieces.append(weights.rows(part, low, high))
            start += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def measured(self, name: str) -> bytes | None:
        """KV ranges and a fitted gate, out of the file's metadata."""
        return self._measured.get(name)

    def text(self, name: str) -> str | None:
        """One of the small files of a checkpoint that the file's metadata stands for."""
        content = self._checkpoint.files.get(name)
        return None if content is None else content.decode()

    def embedding(self) -> Embedding:
        """The token embedding, gathered from the file row by row."""
        reader = self._checkpoint.weights.reader("embedding")
        assert isinstance(reader, GgufReader)
        return GgufEmbedding(reader)


class GgufEmbedding(Embedding):
    """Token ids -> rows of a tensor that stays as the file has it."""

    def __init__(self, reader: GgufReader) -> None:
        self._reader = reader

    def __call__(self, ids: NDArray[np.integer[Any]]) -> Array:
        """Rows [T, C] of ids [T]."""
        rows = self._reader.gather(ids)
        if not np.isfinite(rows).all():
            raise CheckpointError(f"embedding in {self._reader.file} holds values that are not finite")
        return rows


def _weights_id(path: Path, header: Header) -> str:
    """Names the weights by what stands at the start of every tensor: hashing all would double the time of loading."""
    digest = sha256()
    with path.open("rb") as file:
        for tensor in header.tensors.values():
            file.seek(tensor.offset)
            digest.update(repr((tensor.name, tensor.type.name, tensor.shape)).encode())
            digest.update(file.read(min(_SAMPLE, tensor.nbytes)))
    return digest.hexdigest()


def _kind(weights: Weights, name: str) -> Q:
    """The type that a tensor runs in: F32, or one of EXACT."""
    reader, shape = weights.reader(name), weights.shapes[name]
    if not isinstance(reader, GgufReader) or len(shape) == 1:
        return Q.F32
    if reader.type in EXACT or reader.type == Q.F32:
        return reader.type
    return Q.F32 if shape[-1] % BLOCK else Q.Q8_0


def _homes(weights: Weights) -> dict[str, tuple[str, ...]]:
    """Name in the graphs -> the tensors whose rows it concatenates; what differs in type stays apart."""
    homes: dict[str, tuple[str, ...]] = {}
    for name, parts in fused_names(weights.config).items():
        if len({_kind(weights, part) for part in parts}) == 1:
            homes[name] = parts
        else:
            homes |= {part: (part,) for part in parts}
    embedding = homes.pop("embedding")
    return homes if "head" in homes else homes | {"head": embedding}


def _tensors(weights: Weights, homes: dict[str, tuple[str, ...]]) -> dict[str, StoredTensor]:
    """What the graphs are built from; offsets mean nothing, since every array is handed over by name."""
    tensors = {}
    for name, parts in homes.items():
        kind, columns = _kind(weights, parts[0]), weights.shapes[parts[0]][1:]
        shape = (sum(weights.shapes[part][0] for part in parts), *columns)
        if kind == Q.F32:
            tensors[name] = StoredTensor(shape, None, {"values": StoredArray(0, "float32", shape)})
            continue
        how = scheme(kind)
        stored = {part: StoredArray(0, dtype, size) for part, (dtype, size) in how.parts(shape).items()}
        if EXACT[kind][1]:
            stored["offsets"] = stored["scales"]
        tensors[name] = StoredTensor(shape, how, stored)
    return tensors


def _blank(stored: Mapping[str, StoredArray]) -> dict[str, NDArray[Any]]:
    """Arrays to be filled, in one piece of memory.

    The system backs one large piece by large pages, and has it back as soon as the arrays go.
    """
    memory, arrays, start = np.empty(sum(_room(array) for array in stored.values()), np.uint8), {}, 0
    for name, array in stored.items():
        arrays[name] = memory[start : start + array.size].view(DTYPES[array.dtype]).reshape(array.shape)
        start += _room(array)
    return arrays


def _room(array: StoredArray) -> int:
    """Bytes of an array, and those that keep the next one aligned."""
    return -(-array.size // 64) * 64


def _changes(weights: Weights) -> str:
    """A line about the tensors that do not run in the type that they are stored in, empty when all do."""
    changed: Counter[tuple[str, str]] = Counter()
    for name, shape in weights.shapes.items():
        reader = weights.reader(name)
        gathered = name == "embedding" and not weights.config.tie_word_embeddings  # row by row, as the file has it
        if (
            isinstance(reader, GgufReader)
            and len(shape) == 2
            and not gathered
            and reader.type != (to := _kind(weights, name))
        ):
            changed[reader.type.name, to.name] += 1
    return "; ".join(f"{count} {old} tensors run as {new}" for (old, new), count in sorted(changed.items()))
