"""Converts GGUF blocks to blocks of onnxruntime's MatMulNBits and back, without rounding of codes.

    Q4_0  float16 d, 16 bytes: byte j holds codes j and j + 16;     value = d * (code - 8)
    Q4_1  float16 d, m, 16 bytes like Q4_0's;                       value = d * code + m
    Q8_0  float16 d, 32 signed codes;                               value = d * code
    MatMulNBits: byte j holds codes 2j and 2j + 1; value = scale * (code - 8), at 8 bits scale * (code - 128)

Q4_1 becomes d * (code - 8) plus an offset m + 8 d per block, which the graph multiplies by the sum of the block's
inputs. The form of MatMulNBits with float zero points is not used, because it is hundreds of times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.quant import Rounded, Scheme
from ouro_edge.quant.packing import pack

Bytes = NDArray[np.uint8]

BLOCK_SIZE = 32
_CHUNK_VALUES = 1 << 18  # repacked per step, so that temporaries fit a second-level cache
_HALF = np.dtype("<f2")
_TOP_BIT = np.uint8(128)
_LOW, _HIGH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)  # nibbles of eight bytes
_FOUR = np.uint64(4)

# Types that are repacked without rounding: bits of a code, and whether a block has an offset in addition to a scale.
EXACT = {Q.Q4_0: (4, False), Q.Q4_1: (4, True), Q.Q8_0: (8, False)}
_BLOCKS = {
    Q.Q4_0: np.dtype([("d", _HALF), ("codes", "V16")]),
    Q.Q4_1: np.dtype([("d", _HALF), ("m", _HALF), ("codes", "V16")]),
    Q.Q8_0: np.dtype([("d", _HALF), ("codes", "V32")]),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """The arrays of one matrix [N, K] in MatMulNBits' layout; `fill` writes a few rows at a time."""

    packed: Bytes  # [N, K / 32, 16 or 32]
    scales: Array  # [N, K / 32]
    offsets: Array | None  # [N, K / 32], of Q4_1 only

    def fill(self, kind: Q, start: int, raw: Bytes) -> None:
        """Write rows from `start` on, given as stored: contiguous bytes [rows, row_bytes]."""
        step = max(1, _CHUNK_VALUES // (BLOCK_SIZE * self.scales.shape[1]))
        for at in range(0, len(raw), step):
            piece = raw[at : at + step]
            rows = slice(start + at, start + at + len(piece))
            blocks = piece.view(_BLOCKS[kind])
            codes = blocks["codes"].flatten().view(np.uint8)  # NumPy is slow on an inner axis of 16
            packed = self.packed[rows].reshape(-1)
            self.scales[rows] = blocks["d"]
            if kind == Q.Q8_0:
                np.bitwise_xor(codes, _TOP_BIT, out=packed)
                continue
            if self.offsets is not None:
                self.offsets[rows] = blocks["m"]
                self.offsets[rows] += 8 * self.scales[rows]
            _interleave(codes, packed)

    def finite(self) -> bool:
        """Whether all scales and offsets are finite."""
        return bool(np.isfinite(self.scales).all() and (self.offsets is None or np.isfinite(self.offsets).all()))


def scheme(kind: Q) -> Scheme:
    """The scheme of a type in EXACT, for MatMulNBits."""
    return Scheme(EXACT[kind][0], BLOCK_SIZE, symmetric=True)


def stored_type(scheme: Scheme | None) -> Q | None:
    """The GGUF type that can store a scheme's codes unchanged, or None."""
    if scheme is None:
        return Q.F32
    if scheme.block_size % BLOCK_SIZE:
        return None
    if scheme.bits == 8:
        return Q.Q8_0 if scheme.symmetric else None
    return Q.Q4_0 if scheme.symmetric else Q.Q4_1


def store(packed: Bytes, scales: Array, zeros: Bytes | None, kind: Q, minima: Array | None = None) -> Bytes:
    """Rows in MatMulNBits' layout -> GGUF bytes [rows, row_bytes]; codes are kept, scales are rounded to float16.

    Blocks of `packed` [rows, blocks, ...] and `scales` [rows, blocks] may be wider than 32; `zeros` [rows, blocks] are
    zero points, or `minima` the lowest values, for Q4_1. Rows are padded to whole wide blocks; the caller must cut the
    padding off.
    """
    bits = EXACT[kind][0]
    rows = len(packed)
    codes = packed.reshape(rows, -1, BLOCK_SIZE * bits // 8)
    repeat = codes.shape[1] // scales.shape[1]
    scales = np.repeat(scales, repeat, axis=1)
    out = np.empty((rows, codes.shape[1], (4 if kind == Q.Q4_1 else 2) + codes.shape[2]), np.uint8)
    out[:, :, :2] = _as_halves(scales)
    if kind == Q.Q8_0:
        np.bitwise_xor(codes, _TOP_BIT, out=out[:, :, 2:])
        return out.reshape(rows, -1)
    if kind == Q.Q4_1:
        if minima is None:
            assert zeros is not None
            minima = -scales * np.repeat(zeros, repeat, axis=1)
        out[:, :, 2:4] = _as_halves(minima)
    split = np.concatenate((codes & 15, codes >> 4), axis=2)  # codes 0, 2, 4, ..., then 1, 3, 5, ...
    ordered = split.reshape(rows, -1, 2, 16).swapaxes(2, 3).reshape(rows, -1, 32)
    out[:, :, -16:] = ordered[:, :, :16] | ordered[:, :, 16:] << 4
    return out.reshape(rows, -1)


def store_rounded(matrix: Rounded, kind: Q, start: int, stop: int) -> Bytes:
    """Rows of a matrix that was rounded to blocks of 32 -> GGUF bytes [rows, row_bytes]. Q4_1 has minima."""
    codes, scales = matrix.codes[start:stop], matrix.scales[start:stop]
    packed = pack(codes.reshape(*scales.shape, BLOCK_SIZE), EXACT[kind][0])
    return store(packed, scales, None, kind, matrix.zeros[start:stop] if kind == Q.Q4_1 else None)


def _as_halves(values: Array) -> Bytes:
    halves: NDArray[np.float16] = values.astype(_HALF)
    return halves[:, :, None].view(np.uint8)


def _interleave(codes: Bytes, out: Bytes) -> None:
    """Bytes of codes (j, j + 16) -> bytes of codes (2j, 2j + 1), 16 per block, eight at a time in a word."""
    words = codes.view("<u2")
    even, odd = words.astype(np.uint8).view("<u8"), (words >> 8).astype(np.uint8).view("<u8")
    halves = out.view("<u8")  # of a block: codes 0 to 15, codes 16 to 31
    np.bitwise_or(even & _LOW, (odd & _LOW) << _FOUR, out=halves[0::2])
    np.bitwise_or((even & _HIGH) >> _FOUR, odd & _HIGH, out=halves[1::2])
