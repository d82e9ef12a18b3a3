"""Distances between two models' predictions of the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating[Any]]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities [T, V] of logits [T, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(expected: Logits, found: Logits) -> NDArray[np.float64]:
    """KL(expected || found) [T] of the distributions of logits [T, V], in nats."""
    p, q = log_softmax(expected), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def token_loss(logits: Logits, ids: NDArray[np.integer[Any]]) -> float:
    """Mean negative log-probability, in nats, of ids[1:] given the logits [T, V] of the positions before them."""
    return float(-log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean())
