"""What calibrated rounding minimises: the error of a matrix's outputs on given inputs, as a damped Hessian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.errors import CheckpointError

Double = NDArray[np.float64]

_DAMPING = 0.1  # of the mean of diag(H), added to it
_SHRINKAGE = 0.2  # share of the off-diagonal elements that is dropped: they are noisy on a short text
_DIRECT = 64  # size of a triangular matrix that is inverted without recursion


class Objective:
    """The Hessian of a matrix's inputs, damped and factorised once for all matrices with the same inputs."""

    def __init__(self, hessian: NDArray[np.floating], damping: float = _DAMPING, shrinkage: float = _SHRINKAGE) -> None:
        damped = np.array(hessian, np.float64)
        if not np.isfinite(damped).all():
            raise CheckpointError("the inputs of a matrix are not finite on the calibration text")
        diagonal = np.diagonal(damped).copy()
        damped *= 1 - shrinkage
        damped[np.diag_indices(len(damped))] += shrinkage * diagonal
        added = damping * max(float(diagonal.mean()), 1e-30)
        damped[np.diag_indices(len(damped))] += added
        self.shrinkage, self._kept = shrinkage, (shrinkage * diagonal + added).astype(np.float32)
        self.hessian = damped.astype(np.float32)
        self.importance = np.diagonal(self.hessian).copy()  # [K]
        self.order = np.argsort(-diagonal, kind="stable")
        last_first = self.order[::-1]
        upper = np.linalg.cholesky(damped[np.ix_(last_first, last_first)]).astype(np.float64)[::-1, ::-1]
        self.factor = _inverse(upper).astype(np.float32)  # [K, K] in `order`, upper: H^-1 = factor^T @ factor

    def target(self, weights: Array, outputs: Array) -> Array:
        """The matrix [N, K] that on these inputs comes closest to the outputs of `weights` on the original inputs.

        `outputs` [N, K] is original outputs^T @ own inputs, on the scale of the Hessian.
        """
        moment = np.float32(1 - self.shrinkage) * outputs + weights * self._kept
        out = np.empty_like(moment)
        out[:, self.order] = moment[:, self.order] @ self.factor.T @ self.factor
        return out


def _inverse(upper: Double) -> Double:
    """The inverse of an upper triangular matrix, by halves."""
    size = len(upper)
    if size <= _DIRECT:
        return np.triu(np.linalg.inv(upper))
    half, inverse = size // 2, np.zeros_like(upper)
    inverse[:half, :half] = first = _inverse(upper[:half, :half])
    inverse[half:, half:] = last = _inverse(upper[half:, half:])
    inverse[:half, half:] = -(first @ upper[:half, half:]) @ last
    return inverse
