"""Quantises tensors and streams them into a bundle's data file. Must not import onnx.

One tensor is in memory at a time, a large one in pieces of rows, so the memory peak depends on the largest packed
tensor instead of the model's size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array, Weights
from ouro_edge.bundle.manifest import PAGE, StoredArray, StoredTensor
from ouro_edge.quant import ErrorMeter, QuantizedTensor, Rounded, Scheme, concatenate, dequantize, quantize

PIECE_VALUES = 16 << 20  # float32 values quantised at a time: 64 MB
_MIN_NORMAL_FLOAT16 = np.float32(2.0**-14)


class DataFile:
    """Writes arrays consecutively, returns their positions, and computes the file's digest while writing."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, pieces: Iterator[NDArray[Any]], dtype: str, shape: tuple[int, ...]) -> StoredArray:
        """Append one array, passed in pieces along its first axis."""
        self._append(bytes(-self.size % PAGE))
        stored = StoredArray(dtype, shape, offset=self.size)
        for piece in pieces:
            self._append(np.ascontiguousarray(piece).data.cast("B"))
        assert self.size == stored.offset + stored.size
        return stored

    def finish(self) -> dict[str, Any]:
        """Flush to disk; returns the manifest's record of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


def store(
    data: DataFile,
    weights: Weights,
    parts: tuple[str, ...],
    scheme: Scheme | None,
    rounded: Mapping[str, Rounded] | None = None,
) -> StoredTensor:
    """Write the row-wise concatenation of `parts` in the given scheme; parts in `rounded` have codes already."""
    columns = weights.shapes[parts[0]][1:]
    shape = (sum(weights.shapes[part][0] for part in parts), *columns)
    if scheme is None:
        pieces = (piece for part in parts for piece in _pieces(weights, part))
        return StoredTensor(shape, None, {"values": data.write(pieces, "float32", shape)})
    meter, quantized = ErrorMeter(), []
    for part in parts:
        given, at = None if rounded is None else rounded.get(part), 0
        if given is not None:
            quantized.append(given.tensor(scheme))
        for piece in _pieces(weights, part):
            if given is None:
                quantized.append(_half_scales(quantize(piece, scheme)))
                meter.add(piece, dequantize(quantized[-1]))
            else:
                meter.add(piece, dequantize(quantized[-1], at, at + len(piece)))
            at += len(piece)
    whole = concatenate(quantized)
    stored = {
        "packed": data.write(iter([whole.packed]), "uint8", whole.packed.shape),
        "scales": data.write(iter([whole.scales]), "float32", whole.scales.shape),
    }
    if whole.zero_points is not None:
        stored["zero_points"] = data.write(iter([whole.zero_points]), "uint8", whole.zero_points.shape)
    return StoredTensor(shape, scheme, stored, meter.result().to_dict())


def _half_scales(tensor: QuantizedTensor) -> QuantizedTensor:
    """Round scales to float16 within its normal range, so that GGUF can store the same symmetric blocks exactly.

    Changes a scale by at most 1/4096. Blocks with zero points have no exact form in GGUF and are not changed.
    """
    if not tensor.scheme.symmetric:
        return tensor
    with np.errstate(over="ignore"):
        halves = tensor.scales.astype(np.float16).astype(np.float32)
    fits = np.isfinite(halves) & (np.abs(halves) >= _MIN_NORMAL_FLOAT16)
    return replace(tensor, scales=np.where(fits, halves, tensor.scales))


def _pieces(weights: Weights, name: str) -> Iterator[Array]:
    rows, *columns = weights.shapes[name]
    step = max(1, PIECE_VALUES // max(1, *columns)) if columns else rows
    for start in range(0, rows, step):
        yield weights.rows(name, start, min(rows, start + step))
