"""A rotation that spreads outliers over neighbouring channels, so that one scale fits a whole row.

Rotating both sides leaves a product unchanged: x @ W.T = (x @ R) @ (W @ R).T. In the rotated space no channel of a row
dominates, which reduces the error of rounding with one scale per row (QuaRot, arXiv 2404.00456).
"""

from __future__ import annotations

import numpy as np

from ouro_edge.arch.weights import Array

_MAX_ROTATION_CHANNELS = 64  # 128 channels gain little more and cost twice as much


def rotation_size(width: int) -> int:
    """The number of neighbouring channels that are mixed in rows of this width; 1 when the width is odd."""
    return min(_MAX_ROTATION_CHANNELS, width & -width)


def rotation(size: int) -> Array:
    """An orthonormal Hadamard matrix [size, size] (Sylvester's construction) with random but fixed row signs.

    The signs prevent a component common to all channels from accumulating in one of them.
    """
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size)
    rotated: Array = signs[:, None] * hadamard / np.sqrt(np.float32(size))
    return rotated


def rotate(values: Array) -> Array:
    """Rows [N, K], rotated in runs of `rotation_size(K)` channels; unchanged when that is 1."""
    size = rotation_size(values.shape[1])
    if size == 1:
        return values
    rotated: Array = (values.reshape(-1, size) @ rotation(size)).reshape(values.shape)
    return rotated
