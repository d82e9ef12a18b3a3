"""The distribution that a sampler draws from, for tests that compare it with frequencies or with a plain definition."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from ouro_edge.runtime.sampling.sampler import Sampling


def distribution(
    sampling: Sampling, logits: NDArray[np.float32], seen: Sequence[int] | Set[int] = ()
) -> NDArray[np.float64]:
    """The exact probabilities [V] that `pick` draws from, after all filters."""
    ids, probabilities = sampling.survivors(logits, seen)
    full = np.zeros(len(logits), np.float64)
    full[ids] = probabilities
    return full
