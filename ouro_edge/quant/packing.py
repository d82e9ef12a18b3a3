"""Packs codes of 4 or 8 bits into bytes and unpacks them.

At 4 bits the first code of a pair is the low nibble; after an odd number of codes the high nibble is padding. This is
the layout of weights and zero points in onnxruntime's MatMulNBits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes [..., n], each below 2**bits -> bytes [..., ceil(n * bits / 8)]; an odd last nibble is paired with 0."""
    if bits == 8:
        return codes
    low, high = codes[..., 0::2], codes[..., 1::2]
    packed: Bytes = low.copy()  # [..., ceil(n / 2)]
    packed[..., : high.shape[-1]] |= high << 4
    return packed


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """Bytes [..., ceil(count * bits / 8)] -> codes [..., count]."""
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0::2])
    np.right_shift(packed, 4, out=codes[..., 1::2])
    return codes[..., :count]
