"""Probabilities of logits, and the distance between two models' predictions of the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LogProbabilities = NDArray[np.float64]


def log_softmax(logits: NDArray[np.floating[Any]]) -> LogProbabilities:
    """Log-probabilities [T, V] of logits [T, V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(expected: LogProbabilities, found: LogProbabilities) -> NDArray[np.float64]:
    """KL(expected || found) [T] of log-probabilities [T, V], in nats."""
    return (np.exp(expected) * (expected - found)).sum(axis=-1)
