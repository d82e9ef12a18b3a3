"""Reads the header of a GGUF file: metadata, and name, type, shape and offset of every tensor.

The gguf package defines the type numbers. Its `GGUFReader` is not used, because it trusts the file: it iterates over
any count in the header, truncates strings that end beyond the file, and fails with KeyError, IndexError or an endless
loop. Here every length is compared with the remaining bytes before anything is read, so the allocated memory is bounded
by the size of the header, which is limited to 64 MiB. Layout: ggml/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.source import SourceFile

# A metadata value: an array of numbers becomes a NumPy array, an array of strings a list.
Value = str | int | float | bool | list[str] | NDArray[Any]
Metadata = Mapping[str, Value]

_MAX_HEADER_BYTES = 64 << 20
_MAX_TENSORS = 1 << 16
_MAX_NAME_CHARACTERS = 256
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The description of one tensor; its bytes have been checked to be inside the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]  # rows first: reverse of the order in the file
    offset: int  # from the start of the file
    row_bytes: int  # of one row of the last axis

    @property
    def nbytes(self) -> int:
        """Total bytes of all rows."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The content of the file before the tensor data."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_header(source: Path | SourceFile) -> Header:
    """Read and check a header. One-line CheckpointError unless it is a complete little-endian GGUF file."""
    source = SourceFile(source) if isinstance(source, Path) else source
    try:
        with source.stream() as file:
            return _Parser(source.path, file).header()
    except OSError as problem:
        raise CheckpointError(f"{source.path} cannot be read: {problem}") from None


class _Parser:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.position, self.end = 0, min(self.size, _MAX_HEADER_BYTES)

    def header(self) -> Header:
        if (magic := self.take(4, "the magic")) != b"GGUF":
            raise self.error(f"starts with {magic!r}; expected a GGUF file")
        version = self.number("<I", "the version")
        if version and not version & 0xFFFF:
            raise self.error("is big-endian; expected a little-endian file, so convert it again")
        if version not in (2, 3):
            raise self.error(f"is GGUF version {version}; expected 2 or 3, so convert it again")
        tensor_count = self.count("tensors", 8 + 4 + 8 + 4 + 8, 8)
        if tensor_count > _MAX_TENSORS:
            raise self.error(f"claims {tensor_count} tensors; expected at most {_MAX_TENSORS}")
        pairs = self.count("metadata pairs", 8 + 4 + 1)
        metadata: dict[str, Value] = {}
        for index in range(pairs):
            key = self.name(f"metadata key {index}")
            if key in metadata:
                raise self.error(f"has the metadata key {key} twice")
            metadata[key] = self.value(self.number("<I", key), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"has general.alignment {alignment!r}; expected a power of two")
        tensors: dict[str, TensorInfo] = {}
        for index in range(tensor_count):
            tensor = self.tensor(f"tensor {index}", alignment)
            if tensor.name in tensors:
                raise self.error(f"has the tensor {tensor.name} twice")
            tensors[tensor.name] = tensor
        return Header(metadata, self.placed(tensors, -(-self.position // alignment) * alignment))

    def tensor(self, what: str, alignment: int) -> TensorInfo:
        name = self.name(f"the name of {what}")
        dimensions = self.number("<I", name)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.error(f"gives {name} {dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, name))[::-1]
        type_id, offset = self.number("<I", name), self.number("<Q", name)
        try:
            kind = GGMLQuantizationType(type_id)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise self.error(f"stores {name} in the unknown type {type_id}; a newer gguf package may know it") from None
        if 0 in shape or shape[-1] % block:
            raise self.error(f"gives {name} the shape {list(shape)}; {kind.name} stores rows in blocks of {block}")
        if offset % alignment:
            raise self.error(f"places {name} at offset {offset}; expected a multiple of the alignment {alignment}")
        return TensorInfo(name, kind, shape, offset, shape[-1] // block * block_bytes)

    def placed(self, tensors: dict[str, TensorInfo], start: int) -> dict[str, TensorInfo]:
        """Tensors with offsets from the start of the file; checks that they do not overlap or exceed the file."""
        end, before = start, ""
        placed = {}
        for t in sorted(tensors.values(), key=lambda t: t.offset):
            offset = start + t.offset
            if offset < end:
                raise self.error(f"places {t.name} into the bytes of {before}; the file is damaged")
            end, before = offset + t.nbytes, t.name
            if end > self.size:
                raise self.error(f"has {self.size} bytes, but {t.name} ends at {end}: incomplete, fetch it again")
            placed[t.name] = TensorInfo(t.name, t.type, t.shape, offset, t.row_bytes)
        return {name: placed[name] for name in tensors}

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            scalar: int | float | bool = self.numbers(kind, 1, key)[0].item()
            return scalar
        kind = self.number("<I", key)
        if kind == _STRING:
            return [self.string(key) for _ in range(self.count(f"strings in {key}", 8))]
        return self.numbers(kind, self.number("<Q", key), key)

    def numbers(self, kind: int, count: int, key: str) -> NDArray[Any]:
        if kind not in _NUMBERS:
            raise self.error(f"gives {key} the value type {kind}; expected numbers, strings or lists of them")
        dtype = np.dtype(_NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind != _BOOL:
            return values
        if (values > 1).any():
            raise self.error(f"has a {key} that is neither true nor false")
        return values.astype(bool)

    def string(self, what: str) -> str:
        try:
            return self.take(self.number("<Q", what), what).decode()
        except UnicodeDecodeError:
            raise self.error(f"has bytes that are not UTF-8 in {what}") from None

    def name(self, what: str) -> str:
        """A metadata key or a tensor name that is safe to print."""
        name = self.string(what)
        if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or not name.isprintable():
            raise self.error(f"has {name[:40]!a} as {what}; expected 1 to {_MAX_NAME_CHARACTERS} printable characters")
        return name

    def count(self, what: str, least: int, reserved: int = 0) -> int:
        """A count of items of at least `least` bytes each; an error when they and `reserved` bytes exceed the rest."""
        count = self.number("<Q", f"the number of {what}")
        if count * least > self.end - self.position - reserved:
            raise self.error(f"claims {count} {what}, more than its header can hold: damaged or incomplete")
        return count

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def take(self, count: int, what: str) -> bytes:
        if count > self.end - self.position:
            place = "its end" if self.end == self.size else f"the {_MAX_HEADER_BYTES} bytes that a header may have"
            raise self.error(f"reaches {place} inside {what}: damaged or incomplete, fetch it again")
        data = self.file.read(count)
        if len(data) != count:
            raise self.error("became shorter while it was read")
        self.position += count
        return data

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {text}")
