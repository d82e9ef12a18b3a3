"""An exported model on disk: file names, checksums, and its tensors as arrays.

`export` writes such a directory, `runtime` reads it; neither imports the other.

    config.json, generation_config.json, tokenizer.json, chat_template.jinja ...   copied from the checkpoint
    model.onnx, head.onnx    the graphs of the shared block and of the head
    model.kv-int8.onnx ...   the block over a quantised KV cache
    model.L.onnx ...         instead of these, where a model has several stacks of layers
    model.onnx.data          every weight once; the graphs and the manifest point into it
    ouro_edge.json           the manifest, written last: without it a directory is not a bundle
    exit_gate.json, kv_ranges.*   added later: see `fitted_gate` and `kv_ranges`
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig, check_same, from_hf
from ouro_edge.arch.json_object import read_json_object
from ouro_edge.arch.loop_program import BLOCK, loop_program
from ouro_edge.arch.published import single_pass_note
from ouro_edge.arch.weights import Array, fused_names, tensor_shapes
from ouro_edge.bundle.bundle import Bundle, Embedding, GraphFile
from ouro_edge.bundle.fitted_gate import FittedGate, read_gate
from ouro_edge.bundle.graph_check import check_block, check_head
from ouro_edge.bundle.kv_ranges import is_calibrated, load_ranges
from ouro_edge.bundle.manifest import PAGE, VERSION, Manifest, StoredArray, read_manifest
from ouro_edge.bundle.tensors import DTYPES
from ouro_edge.errors import BundleError, ConfigError
from ouro_edge.quant import QuantizedTensor, dequantize, dequantize_rows
from ouro_edge.system.progress import Progress

MANIFEST_FILE = "ouro_edge.json"
BLOCK_FILES = {"fp32": "model.onnx", "int8": "model.kv-int8.onnx", "int4": "model.kv-int4.onnx"}  # by KV type
HEAD_FILE = "head.onnx"
DATA_FILE = "model.onnx.data"
MAX_HASHED_BYTES = 64 << 20  # larger files are hashed by `verify` only: opening must not read all weights twice


def graph_file(stack: str, kv: str) -> str:
    """The file with the graph of a stack over a KV cache of type `kv`: model.onnx for the block, model.H.onnx for H."""
    return BLOCK_FILES[kv] if stack == BLOCK else BLOCK_FILES[kv].replace("model.", f"model.{stack}.", 1)


def graph_files(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The files of all stacks' graphs: name -> stack and KV type."""
    stacks = [stack.name for stack in loop_program(config).stacks]
    return {graph_file(stack, kv): (stack, kv) for stack in stacks for kv in BLOCK_FILES}


class DirectoryBundle(Bundle):
    """An open directory: its manifest, and its tensors, memory-mapped on demand."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(
            name=manifest.name,
            path=path,
            config=manifest.model,
            weights_id=manifest.files[DATA_FILE]["sha256"],
            tensors=manifest.tensors,
        )
        self.manifest = manifest
        if note := single_pass_note(manifest.name, manifest.model):
            self.notes = (note,)

    @property
    def directory(self) -> Path:
        return self.path

    @property
    def weights_file(self) -> Path:
        return self.path / DATA_FILE

    def block_graph(self, kv: str, progress: Progress | None = None, stack: str = BLOCK) -> GraphFile:
        return self._checked(graph_file(stack, kv), kv, stack)

    def head_graph(self, progress: Progress | None = None) -> GraphFile:
        return self._checked(HEAD_FILE, None)

    def _checked(self, name: str, kv: str | None, stack: str = BLOCK) -> GraphFile:
        """A graph file that holds only what the exporter writes; `kv` is None for the head."""
        file, tensors = self.path / name, self.manifest.tensors
        if kv is None:
            check_head(file, self.config, tensors, DATA_FILE)
        else:
            check_block(file, self.config, kv, tensors, DATA_FILE, stack)
        schemes = [tensor.scheme for tensor in tensors.values() if tensor.scheme is not None]
        symmetric_int4 = any(scheme.bits == 4 and scheme.symmetric for scheme in schemes)
        return GraphFile(file, self.weights_file, symmetric_int4)

    def embedding(self) -> Embedding:
        tensor = self.manifest.tensors["embedding"]
        if tensor.scheme is None:
            return _EmbeddingTable(self.array(tensor.parts["values"]))
        return _EmbeddingTable(self.quantized("embedding"))

    def array(self, stored: StoredArray) -> NDArray[Any]:
        """A read-only memory map of one array."""
        try:
            return np.memmap(self.weights_file, DTYPES[stored.dtype], "r", stored.offset, stored.shape)
        except OSError as problem:
            raise BundleError(f"{self.weights_file} cannot be read: {problem.strerror}") from None

    def quantized(self, name: str) -> QuantizedTensor:
        """A quantised tensor over memory maps."""
        tensor = self.manifest.tensors[name]
        assert tensor.scheme is not None
        parts = {part: self.array(stored) for part, stored in tensor.parts.items()}
        rows, columns = tensor.shape
        zero_points = parts.get("zero_points")
        return QuantizedTensor(tensor.scheme, (rows, columns), parts["packed"], parts["scales"], zero_points)

    def values(self, name: str) -> Array:
        tensor = self.manifest.tensors[name]
        if tensor.scheme is None:
            return np.array(self.array(tensor.parts["values"]), np.float32)
        return dequantize(self.quantized(name))

    def rows(self, name: str, first: int, last: int) -> Array:
        tensor = self.manifest.tensors[name]
        if tensor.scheme is None:
            return np.array(self.array(tensor.parts["values"])[first:last], np.float32)
        return dequantize(self.quantized(name), first, last)

    def text(self, name: str) -> str | None:
        if name not in self.manifest.files:
            return None
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as problem:
            raise BundleError(f"{self.path / name} cannot be read as text: {problem}") from None

    def fitted_gate(self) -> FittedGate | None:
        return read_gate(self.path, self.config, self.weights_id)

    @property
    def has_kv_ranges(self) -> bool:
        return is_calibrated(self.path)

    def kv_ranges(self) -> Array | None:
        return load_ranges(self.path, self.config, self.weights_id)


class _EmbeddingTable:
    """Rows of a memory-mapped matrix; only the pages of requested rows become resident."""

    def __init__(self, table: QuantizedTensor | NDArray[np.float32]) -> None:
        self._table = table

    def __call__(self, ids: NDArray[np.integer[Any]]) -> Array:
        if isinstance(self._table, QuantizedTensor):
            return dequantize_rows(self._table, ids)
        return np.asarray(self._table[ids], np.float32)


def is_bundle(path: Path) -> bool:
    """Whether a directory has a manifest. BundleError when its content cannot be listed."""
    try:
        return (path / MANIFEST_FILE).is_file()
    except OSError as problem:
        raise BundleError(f"{path / MANIFEST_FILE} cannot be read: {problem.strerror}") from None


def open_bundle(path: Path, *, max_hashed_bytes: int = MAX_HASHED_BYTES) -> DirectoryBundle:
    """Open an exported directory; checksums are verified up to `max_hashed_bytes` per file, sizes always.

    One-line BundleError when it is incomplete, damaged or of another version.
    """
    if not is_bundle(path):
        raise BundleError(f"{path} has no {MANIFEST_FILE}: not an exported model; run ouro-edge export first")
    data = read_json_object(path / MANIFEST_FILE, BundleError)
    if data.get("format") != "ouro-edge" or data.get("version") != VERSION:
        raise BundleError(f"{path} is version {data.get('version')!r} of {data.get('format')!r}; this program reads "
                          f"version {VERSION} of 'ouro-edge': export again")  # fmt: skip
    try:
        manifest = read_manifest(data)
    except ConfigError as problem:
        raise BundleError(f"{path / MANIFEST_FILE}: {problem}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BundleError(f"{path / MANIFEST_FILE} is damaged: {type(problem).__name__} {problem}") from None
    for name in (*graph_files(manifest.model), HEAD_FILE, DATA_FILE, "config.json"):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST_FILE} does not list {name}: export again")
    check_files(path, manifest, max_hashed_bytes)
    try:
        original = read_json_object(path / "config.json", BundleError)
        check_same(manifest.model, from_hf(original, manifest.model.model_type))
    except ConfigError as problem:  # export writes only configs that are accepted here
        raise BundleError(f"{path / 'config.json'}: {problem}; export again") from None
    _check_tensors(path, manifest)
    return DirectoryBundle(path, manifest)


def check_files(path: Path, manifest: Manifest, largest: int | None = None) -> None:
    """Compare sizes of all files, and SHA-256 of those up to `largest` bytes (None: of all), with the manifest.

    BundleError names the first file that is missing or differs.
    """
    for name, record in manifest.files.items():
        file = path / name
        try:
            if not file.is_file():
                raise BundleError(f"{file} is missing: the bundle is incomplete, export again")
            if (size := file.stat().st_size) != record["size"]:
                raise BundleError(f"{file} has {size} bytes, the manifest says {record['size']}: export again")
            if (largest is None or size <= largest) and sha256(file) != record["sha256"]:
                raise BundleError(f"{file} differs from its checksum: the bundle is damaged, export again")
        except OSError as problem:
            raise BundleError(f"{file} cannot be read: {problem.strerror}") from None


def _check_tensors(path: Path, manifest: Manifest) -> None:
    """Check that every tensor of the model is listed, and that its parts have the right type, shape and position."""
    shapes, size = tensor_shapes(manifest.model), manifest.files[DATA_FILE]["size"]
    for name, parts in fused_names(manifest.model).items():
        tensor = manifest.tensors.get(name)
        shape = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        if tensor is None or tensor.shape != shape:
            raise BundleError(f"{path / MANIFEST_FILE} has no {name} of shape {list(shape)}: export again")
    for name, tensor in manifest.tensors.items():
        if name == "head" and tensor.shape != shapes["embedding"]:
            raise BundleError(f"{path / MANIFEST_FILE} has a head of shape {list(tensor.shape)}: export again")
        expected = tensor.scheme.parts(tensor.shape) if tensor.scheme else {"values": ("float32", tensor.shape)}
        if (found := {part: (stored.dtype, stored.shape) for part, stored in tensor.parts.items()}) != expected:
            raise BundleError(f"{path / MANIFEST_FILE} stores {name} as {found}, not {expected}: export again")
        if any(part.offset < 0 or part.offset + part.size > size for part in tensor.parts.values()):
            raise BundleError(f"{path / MANIFEST_FILE} places {name} beyond the end of {DATA_FILE}: export again")
        if any(part.offset % PAGE for part in tensor.parts.values()):
            raise BundleError(f"{path / MANIFEST_FILE} starts {name} inside a page of {DATA_FILE}: export again")
    arrays = [(part, name) for name, tensor in manifest.tensors.items() for part in tensor.parts.values()]
    spans = sorted((part.offset, part.offset + part.size, name) for part, name in arrays)
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:  # the graphs have their own offsets, but embedding rows are read at this one
            raise BundleError(f"{path / MANIFEST_FILE} places {first} and {second} in overlapping bytes: export again")


def sha256(file: Path) -> str:
    """The SHA-256 of a file in hex; the file is read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
