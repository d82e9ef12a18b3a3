"""L-BFGS with backtracking, for smooth convex functions (Nocedal and Wright, algorithm 7.4). Imports NumPy only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_HISTORY_STEPS = 20
_SUFFICIENT_DECREASE = 1e-4  # share of the decrease predicted by the slope
_MIN_STEP = 2.0**-40


@dataclass(frozen=True, slots=True)
class Minimum:
    """The end of a search: the minimum within the tolerance, or the point after the last iteration."""

    point: Vector
    value: float
    iterations: int


def minimise(
    function: Callable[[Vector], tuple[float, Vector]], start: Vector, *, tolerance: float = 1e-6, iterations: int = 300
) -> Minimum:
    """Minimise a function that returns value and gradient, until no element of the gradient exceeds the tolerance.

    The value never increases, and it is finite at every accepted point.
    """
    point = start.astype(np.float64)
    value, gradient = function(point)
    past: deque[tuple[Vector, Vector, float]] = deque(maxlen=_HISTORY_STEPS)
    for iteration in range(iterations):
        if np.abs(gradient).max() <= tolerance:
            return Minimum(point, value, iteration)
        direction = -_times_inverse_hessian(gradient, past)
        slope = float(gradient @ direction)
        step = 1.0 if past else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        while step > _MIN_STEP:
            new_point = point + step * direction
            new_value, new_gradient = function(new_point)
            if np.isfinite(new_value) and new_value <= value + _SUFFICIENT_DECREASE * step * slope:
                break
            step /= 2
        else:
            return Minimum(point, value, iteration)  # rounding hides any further decrease
        moved, bent = new_point - point, new_gradient - gradient
        if (curvature := float(moved @ bent)) > 1e-14 * float(bent @ bent):
            past.append((moved, bent, 1.0 / curvature))
        point, value, gradient = new_point, new_value, new_gradient
    return Minimum(point, value, iterations)


def _times_inverse_hessian(gradient: Vector, past: deque[tuple[Vector, Vector, float]]) -> Vector:
    result = gradient.copy()
    weights = []
    for moved, bent, scale in reversed(past):
        weights.append(scale * float(moved @ result))
        result -= weights[-1] * bent
    if past:
        moved, bent, scale = past[-1]
        result *= 1.0 / (scale * float(bent @ bent))
    for (moved, bent, scale), weight in zip(past, reversed(weights), strict=True):
        result += (weight - scale * float(bent @ result)) * moved
    return result
