"""The trade-off of a gate: loss and accuracy by depth, and the threshold for a target mean depth. Pure functions.

Positions exit as in `reference.exit_depths`, so the figures are those of a generation with the same threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.reference import exit_depths
from ouro_edge.errors import RequestError
from ouro_edge.fitting.gate_features import Features

Vector = NDArray[np.float64]
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Point:
    """Means over all positions at some exit rule."""

    depth: float  # loops
    loss: float  # nats per token
    accuracy: float  # share of positions whose most probable token is the correct one


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two gates, the checkpoint's ("old") and a fitted one ("new"), on the same positions."""

    by_threshold: Mapping[float, tuple[Point, Point]]  # exit threshold -> old, new
    by_depth: Mapping[float, tuple[Point, Point, Point]]  # mean depth -> fixed depth, old, new
    mean_loss: tuple[float, float, float]  # fixed, old, new: over the depths between 1 and R

    @property
    def is_better(self) -> bool:
        """Whether the new gate has less loss than the old one and than a fixed depth."""
        fixed, old, new = self.mean_loss
        return new < min(fixed, old)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, for the report that is stored with a gate."""
        points = {f"{t:g}": dict(zip(("old", "new"), map(astuple, ps), strict=True))
                  for t, ps in self.by_threshold.items()}  # fmt: skip
        depths = {f"{d:g}": dict(zip(("fixed", "old", "new"), map(astuple, ps), strict=True))
                  for d, ps in self.by_depth.items()}  # fmt: skip
        return {
            "mean_loss": dict(zip(("fixed", "old", "new"), self.mean_loss, strict=True)),
            "columns": ["depth", "loss", "accuracy"],
            "by_threshold": points,
            "by_depth": depths,
        }


def compare(features: Features, old: Vector, new: Vector, budget: float | None = None) -> Comparison:
    """The trade-offs of two gates, given by their logits [N, R]; `budget` is one more mean depth to look at."""
    loops, gates = len(features.loss), (old, new)
    by_threshold = {t: (at_threshold(features, old, t), at_threshold(features, new, t)) for t in _THRESHOLDS}
    by_depth = {}
    for depth in sorted({1 + i / 2 for i in range(2 * loops - 1)} | ({budget} if budget is not None else set())):
        before, after = (at_threshold(features, gate, choose_threshold(gate, depth)) for gate in gates)
        by_depth[depth] = at_depth(features, depth), before, after
    inner = [points for depth, points in by_depth.items() if 1 < depth < loops]
    fixed, before_loss, after_loss = (sum(points[i].loss for points in inner) / len(inner) for i in range(3))
    return Comparison(by_threshold, by_depth, (fixed, before_loss, after_loss))


def at_threshold(features: Features, logits: Vector, threshold: float) -> Point:
    """All positions exit by a gate's logits [N, R] at a threshold."""
    return _at(features, exit_depths(logits, threshold))


def at_depth(features: Features, depth: float) -> Point:
    """All positions exit at one depth, 1 to R; a fractional depth is a random mix of the two depths around it."""
    low = min(floor(depth), len(features.loss) - 1)
    share = depth - low
    loss, hits = (values.mean(axis=1) for values in (features.loss, features.hits))
    return Point(depth, *(float((1 - share) * v[low - 1] + share * v[low]) for v in (loss, hits)))


def choose_threshold(logits: Vector, budget: float) -> float:
    """The exit threshold with the largest mean depth over gate logits [N, R] that does not exceed the budget.

    A position continues after loop r while its survival S_r = prod_{j<=r}(1 - lambda_j) is above u = 1 - threshold, so
    the mean depth is 1 plus the number of survivals above u, divided by N. The threshold is chosen midway between two
    survivals, where rounding affects no position. RequestError for a budget outside 1..R.
    """
    positions, loops = logits.shape
    if not 1.0 <= budget <= loops:
        raise RequestError(f"budget is {budget:g}; expected a mean depth from 1 to {loops}, this model's loops")
    most = floor((budget - 1.0) * positions + 1e-9)
    survival = np.sort(np.exp(-np.cumsum(np.logaddexp(0.0, logits[:, :-1]), axis=1)), axis=None)[::-1]
    if most >= survival.size:
        return 1.0
    above = survival[:most][survival[:most] > survival[most]]
    if not len(above):
        return 0.0
    threshold = 1.0 - 0.5 * float(above[-1] + survival[most])
    while (exit_depths(logits, threshold) - 1).sum() > most:  # survivals below the precision of 1 - threshold
        threshold = max(0.0, threshold - 2.0**-53)
    return threshold


def _at(features: Features, depths: NDArray[np.int64]) -> Point:
    at = depths - 1, np.arange(len(depths))
    return Point(float(depths.mean()), float(features.loss[at].mean()), float(features.hits[at].mean()))
