"""Exit probabilities and depths that follow from the logits of an exit gate (arXiv 2510.25741)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def exit_probabilities(gate_logits: NDArray[np.float64], loops: int) -> NDArray[np.float64]:
    """p [T, R] of stopping at each of `loops` loops, from the gate logits [T, r] of the loops that ran.

    p_r = lambda_r * prod_{j<r}(1 - lambda_j); the last loop gets the remaining probability, whatever its gate says. NaN
    for loops whose probability depends on a loop that did not run.
    """
    ran = gate_logits.shape[1]
    p = np.full((len(gate_logits), loops), np.nan)
    go_on = sigmoid(-gate_logits)  # 1 - lambda, without cancellation
    survival = np.cumprod(np.concatenate([np.ones_like(go_on[:, :1]), go_on], axis=1), axis=1)
    p[:, :ran] = survival[:, :ran] * sigmoid(gate_logits)
    if ran == loops:
        p[:, -1] = survival[:, ran - 1]
    return p


def exit_depths(gate_logits: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """Loop [T], counted from 1, at which each position's cumulative exit probability first reaches the threshold.

    CDF_r = 1 - prod_{j<=r}(1 - lambda_j) is compared through the product, which stays exact near 1.
    """
    survival = np.cumprod(sigmoid(-gate_logits), axis=-1)
    stop = survival <= 1.0 - threshold
    stop[:, -1] = True
    depths: NDArray[np.int64] = np.argmax(stop, axis=-1) + 1
    return depths


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + exp(-x)), exact at both ends."""
    with np.errstate(invalid="ignore"):  # NaN in, NaN out: a loop with an unknown gate
        return np.exp(-np.logaddexp(x.dtype.type(0), -x))  # exact at both ends, no overflow
