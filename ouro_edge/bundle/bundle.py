"""What an exported model is on disk: file names, checksums, and its tensors as arrays.

`export` writes it, `runtime` reads it, and they meet nowhere else. Knows the manifest; no onnx, no onnxruntime.

    config.json, generation_config.json, tokenizer.json, chat_template.jinja ...   as the checkpoint had them
    model.onnx, head.onnx    the graphs of the shared block and of the head
    model.kv-int8.onnx ...   the block over a KV cache of fewer bits
    model.onnx.data          every weight once; the graphs and the manifest point into it
    ouro_edge.json           the manifest, written last: without it a directory is not a bundle
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig, check_same, from_hf, read_json_object
from ouro_edge.arch.weights import Array, fused_names, tensor_shapes
from ouro_edge.bundle.manifest import DTYPES, PAGE, VERSION, Manifest, StoredArray, read_manifest
from ouro_edge.errors import BundleError, ConfigError, RequestError
from ouro_edge.quant import QuantizedTensor, dequantize, dequantize_rows

MANIFEST_FILE = "ouro_edge.json"
BLOCK_FILES = {"fp32": "model.onnx", "int8": "model.kv-int8.onnx", "int4": "model.kv-int4.onnx"}  # by KV type
HEAD_FILE = "head.onnx"
DATA_FILE = "model.onnx.data"
_MAX_MEASURED = 64 << 20
_HASH_AT_LOAD = 64 << 20  # larger files are hashed by `verify` only: start-up must not read all weights twice


def cache_head_dim(config: ModelConfig) -> int:
    """Width of a head in the block's KV inputs: the kernel wants multiples of 16, other heads are padded with zeros."""
    return -(-config.head_dim // 16) * 16


@dataclass(frozen=True, slots=True)
class GraphInMemory:
    """A graph that is no file. Its arrays are needed until a session is open: onnxruntime copies what it keeps."""

    source: Path  # where it came from, for messages
    model: bytes  # ONNX; every array is an external initializer of the same name
    arrays: Mapping[str, NDArray[Any]]


class Bundle:
    """An opened bundle: its manifest, and its tensors memory-mapped on demand."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest, self.config = path, manifest, manifest.model
        self.notes: tuple[str, ...] = ()  # one line each: what a user should know about how this model runs

    def with_context(self, positions: int) -> Bundle:
        """The same bundle with a smaller context. RequestError when it was never made for that many positions."""
        most = self.config.max_positions
        if type(positions) is not int or not 1 <= positions <= most:
            raise RequestError(f"a context of {positions!r} was asked for; this model has 1 to {most} positions")
        other = copy.copy(self)
        other.config = replace(self.config, max_positions=positions)
        other.manifest = replace(self.manifest, model=other.config)
        return other

    def graph(self, name: str) -> Path | GraphInMemory:
        """What onnxruntime opens for one of BLOCK_FILES or HEAD_FILE."""
        return self.path / name

    def measured(self, name: str) -> bytes | None:
        """The content of a file that was added to the finished bundle (KV ranges, a fitted gate), None without it."""
        file = self.path / name
        try:
            if not file.exists():
                return None
            if not file.is_file() or file.stat().st_size > _MAX_MEASURED:  # a pipe would hang us
                raise BundleError(f"{file} is no file of at most {_MAX_MEASURED >> 20} MiB")
            return file.read_bytes()
        except OSError as problem:
            raise BundleError(f"{self.path / name} cannot be read: {problem.strerror}") from None

    def array(self, stored: StoredArray) -> NDArray[Any]:
        """A read-only memory map of one array."""
        try:
            return np.memmap(self.path / DATA_FILE, DTYPES[stored.dtype], "r", stored.offset, stored.shape)
        except OSError as problem:
            raise BundleError(f"{self.path / DATA_FILE} cannot be read: {problem.strerror}") from None

    def quantized(self, name: str) -> QuantizedTensor:
        """A quantised tensor over memory maps."""
        tensor = self.manifest.tensors[name]
        assert tensor.scheme is not None
        parts = {part: self.array(stored) for part, stored in tensor.parts.items()}
        rows, columns = tensor.shape
        zero_points = parts.get("zero_points")
        return QuantizedTensor(tensor.scheme, (rows, columns), parts["packed"], parts["scales"], zero_points)

    def values(self, name: str) -> Array:
        """A whole tensor as float32, dequantised when it is stored in fewer bits."""
        tensor = self.manifest.tensors[name]
        if tensor.scheme is None:
            return np.array(self.array(tensor.parts["values"]), np.float32)
        return dequantize(self.quantized(name))

    def rows(self, name: str, first: int, last: int) -> Array:
        """Rows [last - first, K] of a quantised matrix as float32."""
        return dequantize_rows(self.quantized(name), np.arange(first, last))

    def embedding(self) -> Embedding:
        """The token embedding, gathered from the memory map row by row."""
        tensor = self.manifest.tensors["embedding"]
        if tensor.scheme is None:
            return Embedding(self.array(tensor.parts["values"]))
        return Embedding(self.quantized("embedding"))

    def text(self, name: str) -> str | None:
        """The text of one of the small files, or None when the bundle has none of that name."""
        if name not in self.manifest.files:
            return None
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as problem:
            raise BundleError(f"{self.path / name} cannot be read as text: {problem}") from None


class Embedding:
    """Token ids -> rows. Weights stay on disk; only pages of rows that are used become resident."""

    def __init__(self, table: QuantizedTensor | NDArray[np.float32]) -> None:
        self._table = table

    def __call__(self, ids: NDArray[np.integer[Any]]) -> Array:
        """Rows [T, C] of ids [T]."""
        if isinstance(self._table, QuantizedTensor):
            return dequantize_rows(self._table, ids)
        return np.asarray(self._table[ids], np.float32)


def is_bundle(path: Path) -> bool:
    """Whether a directory has a manifest. BundleError when it may not be looked into."""
    try:
        return (path / MANIFEST_FILE).is_file()
    except OSError as problem:
        raise BundleError(f"{path / MANIFEST_FILE} cannot be read: {problem.strerror}") from None


def open_bundle(path: Path) -> Bundle:
    """Open an exported directory. BundleError in one line when it is incomplete, damaged or of another version."""
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
    for name in (*BLOCK_FILES.values(), HEAD_FILE, DATA_FILE, "config.json"):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST_FILE} does not list {name}")
    check_files(path, manifest, _HASH_AT_LOAD)
    try:
        check_same(manifest.model, from_hf(read_json_object(path / "config.json", BundleError)))
    except ConfigError as problem:  # export writes none that is refused
        raise BundleError(f"{path / 'config.json'}: {problem}; export again") from None
    _check_tensors(path, manifest)
    return Bundle(path, manifest)


def check_files(path: Path, manifest: Manifest, largest: int | None = None) -> None:
    """Compare sizes of all files, and SHA-256 of those up to `largest` bytes (None: of all), with the manifest."""
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
    """Every tensor that the model needs is there, and every part of the right type and shape, inside the data file."""
    shapes, size = tensor_shapes(manifest.model), manifest.files[DATA_FILE]["size"]
    for name, parts in fused_names(manifest.model).items():
        tensor = manifest.tensors.get(name)
        shape = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        if tensor is None or tensor.shape != shape:
            raise BundleError(f"{path / MANIFEST_FILE} has no {name} of shape {list(shape)}: export again")
    for name, tensor in manifest.tensors.items():
        if name == "head" and tensor.shape != shapes["embedding"]:
            raise BundleError(f"{path / MANIFEST_FILE} has a head of shape {list(tensor.shape)}: export again")
        wanted = tensor.scheme.parts(tensor.shape) if tensor.scheme else {"values": ("float32", tensor.shape)}
        if (found := {part: (stored.dtype, stored.shape) for part, stored in tensor.parts.items()}) != wanted:
            raise BundleError(f"{path / MANIFEST_FILE} stores {name} as {found}, not {wanted}: export again")
        if any(part.offset < 0 or part.offset + part.size > size for part in tensor.parts.values()):
            raise BundleError(f"{path / MANIFEST_FILE} puts {name} beyond the end of {DATA_FILE}")
        if any(part.offset % PAGE for part in tensor.parts.values()):
            raise BundleError(f"{path / MANIFEST_FILE} has {name} begin inside a page of {DATA_FILE}: export again")
    arrays = [(part, name) for name, tensor in manifest.tensors.items() for part in tensor.parts.values()]
    spans = sorted((part.offset, part.offset + part.size, name) for part, name in arrays)
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:  # the graphs have offsets of their own, but the embedding is gathered by this one
            raise BundleError(f"{path / MANIFEST_FILE} lets {first} and {second} overlap: export again")


def sha256(file: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
