"""GGUF's blocks into the blocks of onnxruntime's MatMulNBits, exactly, and back. Knows both layouts; no files.

    Q4_0  float16 d, 16 bytes: byte j holds codes j and j + 16;     value = d * (code - 8)
    Q4_1  float16 d, m, 16 bytes like Q4_0's;                       value = d * code + m
    Q8_0  float16 d, 32 signed codes;                               value = d * code
    MatMulNBits: byte j holds codes 2j and 2j + 1; value = scale * (code - 8), at 8 bits scale * (code - 128)

Q4_1 becomes d * (code - 8) plus an offset m + 8 d for each block, which the graph multiplies by the sum of the block's
inputs. MatMulNBits has a form with float zero points, but that runs hundreds of times slower.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from numpy.typing import NDArray

from ouro_edge.quant import Scheme
from ouro_edge.weights import Array

Bytes = NDArray[np.uint8]

BLOCK = 32
_CHUNK = 1 << 19  # values at a time: longer runs of NumPy gain nothing
_HALF = np.dtype("<f2")
_LOW = np.uint16(0x0F0F)
_FOUR = np.uint16(4)
_TOP_BIT = np.uint8(128)

# Types that are repacked without rounding: bits of a code, and whether a block has an offset besides its scale.
EXACT = {Q.Q4_0: (4, False), Q.Q4_1: (4, True), Q.Q8_0: (8, False)}


@dataclass(frozen=True, slots=True)
class Parts:
    """The arrays of one matrix [N, K] in MatMulNBits' layout, to be filled some rows at a time."""

    packed: Bytes  # [N, K / 32, 16 or 32]
    scales: Array  # [N, K / 32]
    offsets: Array | None  # [N, K / 32], of Q4_1 only

    @classmethod
    def empty(cls, kind: Q, rows: int, columns: int) -> Parts:
        """Arrays for a matrix of a type in EXACT."""
        bits, with_offsets = EXACT[kind]
        blocks = columns // BLOCK
        packed = _mapped((rows, blocks, BLOCK * bits // 8), np.uint8)
        scales, offsets = (_mapped((rows, blocks), np.float32) for _ in range(2))
        return cls(packed, scales, offsets if with_offsets else None)

    def fill(self, kind: Q, start: int, raw: Bytes) -> None:
        """Write rows from `start` on, given as stored: contiguous bytes [rows, row_bytes]."""
        step = max(1, _CHUNK // (BLOCK * self.scales.shape[1]))
        for at in range(0, len(raw), step):
            piece = raw[at : at + step]
            rows = slice(start + at, start + at + len(piece))
            words = piece.view("<u2").reshape(len(piece), self.scales.shape[1], -1)
            self.scales[rows] = words[:, :, 0].view(_HALF)
            if kind == Q.Q8_0:
                np.bitwise_xor(words[:, :, 1:].copy().view(np.uint8), _TOP_BIT, out=self.packed[rows])
                continue
            if self.offsets is not None:
                self.offsets[rows] = words[:, :, 1].view(_HALF)
                self.offsets[rows] += 8 * self.scales[rows]
            _interleave(words[:, :, -8:], self.packed[rows])


def _mapped(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    """Memory of its own, which goes back when the array does; the heap would keep much of it for the process's life."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size)
    else:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a quarter of the time to touch it first
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def scheme(kind: Q) -> Scheme:
    """What the codes of a type in EXACT are to MatMulNBits."""
    return Scheme(EXACT[kind][0], BLOCK, symmetric=True)


def stored_type(scheme: Scheme | None) -> Q | None:
    """The GGUF type that holds a scheme's codes unchanged, None when there is none."""
    if scheme is None:
        return Q.F32
    if scheme.block_size % BLOCK:
        return None
    if scheme.bits == 8:
        return Q.Q8_0 if scheme.symmetric else None
    return Q.Q4_0 if scheme.symmetric else Q.Q4_1


def store(packed: Bytes, scales: Array, zeros: Bytes | None, kind: Q) -> Bytes:
    """Rows in MatMulNBits' layout as GGUF bytes [rows, row_bytes]; codes stay, scales are rounded to float16.

    `packed` [rows, blocks, ...] and `scales` [rows, blocks] may have wider blocks than 32; `zeros` [rows, blocks] are
    zero points, for Q4_1. What pads a row to whole wide blocks is included; the caller cuts it off.
    """
    bits = EXACT[kind][0]
    rows = len(packed)
    codes = packed.reshape(rows, -1, BLOCK * bits // 8)
    repeat = codes.shape[1] // scales.shape[1]
    scales = np.repeat(scales, repeat, axis=1)
    out = np.empty((rows, codes.shape[1], (4 if kind == Q.Q4_1 else 2) + codes.shape[2]), np.uint8)
    out[:, :, :2] = _as_halves(scales)
    if kind == Q.Q8_0:
        np.bitwise_xor(codes, _TOP_BIT, out=out[:, :, 2:])
        return out.reshape(rows, -1)
    if kind == Q.Q4_1:
        assert zeros is not None
        out[:, :, 2:4] = _as_halves(-scales * np.repeat(zeros, repeat, axis=1))
    split = np.concatenate((codes & 15, codes >> 4), axis=2)  # codes 0, 2, 4, ..., then 1, 3, 5, ...
    ordered = split.reshape(rows, -1, 2, 16).swapaxes(2, 3).reshape(rows, -1, 32)
    out[:, :, -16:] = ordered[:, :, :16] | ordered[:, :, 16:] << 4
    return out.reshape(rows, -1)


def _as_halves(values: Array) -> Bytes:
    halves: NDArray[np.float16] = values.astype(_HALF)
    return halves[:, :, None].view(np.uint8)


def _interleave(nibbles: NDArray[np.uint16], out: Bytes) -> None:
    """Codes (j, j + 16) in bytes, two bytes a word [rows, blocks, 8], into bytes of codes (2j, 2j + 1).

    Both halves of a word hold neighbours: folding the upper onto the lower makes one byte of the pair. Long flat
    arrays, because NumPy is slow on an inner axis of 8.
    """
    high = nibbles.copy().reshape(-1)
    halves = out.reshape(-1).view("<u8")  # of a block: codes 0 to 15, codes 16 to 31
    low = high & _LOW
    low |= low >> _FOUR
    halves[0::2] = low.astype(np.uint8).view("<u8")
    high >>= _FOUR
    high &= _LOW
    high |= high >> _FOUR
    halves[1::2] = high.astype(np.uint8).view("<u8")
