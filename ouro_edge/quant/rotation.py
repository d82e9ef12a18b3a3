"""A rotation that spreads outliers over their neighbours, so that one scale suits a whole row.

A product is the same when both sides are rotated: x @ W.T = (x @ R) @ (W @ R).T. In the rotated space a row has no
channel that stands out, which is what rounding with one scale for a row wants (QuaRot, arXiv 2404.00456).
"""

from __future__ import annotations

import numpy as np

from ouro_edge.arch.weights import Array

_LARGEST = 64  # channels that are mixed: 128 gains little more, and costs twice as much


def rotation_size(width: int) -> int:
    """How many neighbouring channels of rows of this width are mixed; 1 when it is odd."""
    return min(_LARGEST, width & -width)


def rotation(size: int) -> Array:
    """A Hadamard matrix [size, size] by Sylvester's construction with rows of random but fixed sign, orthonormal.

    The signs keep what all channels have in common from gathering in one.
    """
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size)
    rotated: Array = signs[:, None] * hadamard / np.sqrt(np.float32(size))
    return rotated


def rotate(values: Array) -> Array:
    """Rows [N, K], rotated in runs of `rotation_size(K)` channels; as they are when that is 1."""
    size = rotation_size(values.shape[1])
    if size == 1:
        return values
    rotated: Array = (values.reshape(-1, size) @ rotation(size)).reshape(values.shape)
    return rotated
