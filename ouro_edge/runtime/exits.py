"""When a position stops looping. Pure rules over what the loops have shown so far; knows config and errors only.

A rule sees the exit gate's logits of loops 1..r for T positions and answers which of them stop at r. Depths count
from 1. Every rule is exact: a position's output is the one that running all loops and then selecting would give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.config import ModelConfig
from ouro_edge.errors import NoGateError, RequestError


class ExitPolicy(ABC):
    """Base of all rules. Frozen: one policy serves any number of sequences."""

    __slots__ = ()

    def limit(self, config: ModelConfig) -> int:
        """The deepest loop that this policy can ask for; RequestError when the model cannot do what it says."""
        return config.loops

    @abstractmethod
    def stops(self, gate_logits: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which positions [T] stop after loop r, given gate logits [T, r] of loops 1..r. Not asked at the limit."""


@dataclass(frozen=True, slots=True)
class FullDepth(ExitPolicy):
    """All loops for every token."""

    def stops(self, gate_logits: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.zeros(len(gate_logits), bool)


@dataclass(frozen=True, slots=True)
class FixedDepth(ExitPolicy):
    """The same number of loops, counted from 1, for every token."""

    depth: int

    def __post_init__(self) -> None:
        _check_depth("depth", self.depth)

    def limit(self, config: ModelConfig) -> int:
        if self.depth > config.loops:
            raise RequestError(f"depth is {self.depth}; this model was trained for 1 to {config.loops} loops")
        return self.depth

    def stops(self, gate_logits: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.zeros(len(gate_logits), bool)


@dataclass(frozen=True, slots=True)
class ExitThreshold(ExitPolicy):
    """Upstream's rule: stop at the first loop where the cumulative exit probability reaches `threshold`.

    CDF_r = 1 - prod_{j<=r}(1 - sigmoid(gate_j)), arXiv 2510.25741; compared through the product, in float64, which
    stays exact near 1. 1.0 runs all loops, 0.0 one. No position stops before `floor` or goes beyond `ceiling`.
    """

    threshold: float
    floor: int = 1
    ceiling: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)):
            raise RequestError(f"exit threshold is {self.threshold!r}; wanted a number from 0 to 1")
        if not 0.0 <= self.threshold <= 1.0:
            raise RequestError(f"exit threshold is {self.threshold}; wanted 0 (one loop) to 1 (all loops)")
        _check_depth("floor", self.floor)
        if self.ceiling is not None:
            _check_depth("ceiling", self.ceiling)
            if self.ceiling < self.floor:
                raise RequestError(f"ceiling {self.ceiling} is below floor {self.floor}")

    def limit(self, config: ModelConfig) -> int:
        for name, depth in (("floor", self.floor), ("ceiling", self.ceiling)):
            if depth is not None and depth > config.loops:
                raise RequestError(f"{name} is {depth}; this model was trained for 1 to {config.loops} loops")
        if not config.has_gate:
            raise NoGateError("this model has no exit gate, so an exit threshold means nothing: choose a fixed number "
                              f"of loops from 1 to {config.loops}")  # fmt: skip
        return config.loops if self.ceiling is None else self.ceiling

    def stops(self, gate_logits: NDArray[np.float64]) -> NDArray[np.bool_]:
        if gate_logits.shape[1] < self.floor:
            return np.zeros(len(gate_logits), bool)
        survival = np.exp(-np.logaddexp(0.0, gate_logits).sum(axis=1))
        stopped: NDArray[np.bool_] = survival <= 1.0 - self.threshold
        return stopped


def _check_depth(name: str, depth: int) -> None:
    if type(depth) is not int or depth < 1:
        raise RequestError(f"{name} is {depth!r}; wanted a number of loops, counted from 1")
