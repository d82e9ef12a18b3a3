"""Log-probabilities and KL divergence against values computed by hand."""

from __future__ import annotations

import math

import numpy as np

from ouro_edge.evaluation.distances import kl_divergence, log_softmax


def test_log_softmax_survives_large_logits() -> None:
    found = log_softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]], np.float32))
    np.testing.assert_allclose(found, [[-math.log(2)] * 2, [0.0, -1000.0]])


def test_kl_divergence() -> None:
    p, q = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    np.testing.assert_allclose(kl_divergence(log_softmax(p + 3), log_softmax(q - 1)), [expected, 0.0], atol=1e-12)
