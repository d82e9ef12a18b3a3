"""GGUF types whose values are small integers times a scale per block, perhaps plus a minimum, as MatMulNBits codes.

    Q5_0, IQ4_NL, IQ4_XS     value = scale * level                 8 bits, blocks of 32
    Q5_1, Q5_K               value = scale * level + minimum       8 bits, blocks of 32, offsets
    Q4_K                     value = scale * level + minimum       4 bits, blocks of 32, offsets
    Q6_K                     value = scale * level                 8 bits, blocks of 16
    Q3_K                     value = scale * level                 4 bits, blocks of 16
    Q2_K                     value = scale * level + minimum       4 bits, blocks of 16, offsets

No level is rounded. The scales and minima of K-quants are products of a float16 and a small integer, which float32
holds exactly. Levels are found by dividing the dequantised values by the scale, so only scales and minima are unpacked
here (layouts: ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import dequantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.quant import Scheme

Bytes = NDArray[np.uint8]
Factors = tuple[Array, Array | None]  # scales and minima [stored blocks, blocks of MatMulNBits in one]

_HALF = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class Coding:
    """How a type is converted."""

    bits: int
    block_size: int
    factors: Callable[[Bytes], Factors]  # from stored blocks [blocks, bytes]
    middle: int | None = None  # the level that is stored as 0, of types with minima

    @property
    def scheme(self) -> Scheme:
        """The scheme of the codes."""
        return Scheme(self.bits, self.block_size, symmetric=True)


def convert(kind: Q, raw: Bytes) -> tuple[Bytes, Array, Array | None]:
    """Codes [rows, blocks, block size], scales and offsets [rows, blocks] of stored rows [rows, row_bytes].

    value = scale * (code - 2**(bits-1)) + offset
    """
    coding, rows = CODINGS[kind], len(raw)
    half, (scales, minima) = 2 ** (coding.bits - 1), coding.factors(raw.reshape(-1, GGML_QUANT_SIZES[kind][1]))
    scales = scales.reshape(rows, -1)
    levels = dequantize(raw, kind).reshape(*scales.shape, coding.block_size)
    offsets, middle = None, np.float32(coding.middle or 0)
    if minima is not None:
        minima = minima.reshape(scales.shape)
        levels -= minima[:, :, None]
        offsets = minima + middle * scales
    levels /= np.where(scales == 0, np.float32(1), scales)[:, :, None]
    np.rint(levels, out=levels)
    levels += half - middle
    return np.clip(np.nan_to_num(levels, copy=False), 0, 2 * half - 1).astype(np.uint8), scales, offsets


def _half(blocks: Bytes, at: int) -> Array:
    """The float16 at a position of every block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(_HALF).astype(np.float32)


def _one(at: int, minimum: bool = False) -> Callable[[Bytes], Factors]:
    """A scale per stored block, with a minimum behind it."""
    return lambda blocks: (_half(blocks, at), _half(blocks, at + 2) if minimum else None)


def _iq4_xs(blocks: Bytes) -> Factors:
    """float16 d, uint16 of two high bits per scale, 4 bytes of two low halves each."""
    shifts = np.arange(8, dtype=np.uint16)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> (2 * shifts) & 3
    low = np.repeat(blocks[:, 4:8], 2, axis=1) >> (4 * (shifts % 2)) & 15
    return _half(blocks, 0) * ((high << 4 | low).astype(np.float32) - 32), None


def _k4_k5(blocks: Bytes) -> Factors:
    """float16 d, float16 of minima, then 8 scales and 8 minima of 6 bits in 12 bytes."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=1)
    return _half(blocks, 0) * scales, -_half(blocks, 2) * minima


def _k6(blocks: Bytes) -> Factors:
    """192 bytes of levels, 16 scales as int8, float16 d."""
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None


def _k3(blocks: Bytes) -> Factors:
    """96 bytes of levels, 16 scales of 6 bits in 12 bytes (8 with low halves, 4 with high bits), float16 d."""
    low = np.concatenate((blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4), axis=1)
    high = np.concatenate([blocks[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    return _half(blocks, 108) * ((high << 4 | low).astype(np.float32) - 32), None


def _k2(blocks: Bytes) -> Factors:
    """16 bytes with a scale and a minimum in 4 bits each, 64 bytes of levels, float16 d, float16 of minima."""
    return _half(blocks, 80) * (blocks[:, :16] & 15), -_half(blocks, 82) * (blocks[:, :16] >> 4)


CODINGS = {
    Q.Q5_0: Coding(8, 32, _one(0)),
    Q.IQ4_NL: Coding(8, 32, _one(0)),
    Q.IQ4_XS: Coding(8, 32, _iq4_xs),
    Q.Q5_1: Coding(8, 32, _one(0, minimum=True), 16),
    Q.Q5_K: Coding(8, 32, _k4_k5, 16),
    Q.Q4_K: Coding(4, 32, _k4_k5, 8),
    Q.Q6_K: Coding(8, 16, _k6),
    Q.Q3_K: Coding(4, 16, _k3),
    Q.Q2_K: Coding(4, 16, _k2, 2),
}
