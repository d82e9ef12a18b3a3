"""When a position stops looping. Pure rules over what the loops have shown so far; knows config and errors only.

A rule sees the Evidence of loop r for T positions and answers which of them stop there. Depths count from 1. Every rule
is exact: a position's output is the one that running all loops and then selecting by the same rule would give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ouro_edge.config import ModelConfig
from ouro_edge.errors import NoGateError, RequestError
from ouro_edge.weights import Array


class Evidence:
    """What is known of T positions after a loop. Logits cost a call of the head: they are made when asked for."""

    def __init__(
        self,
        gate_logits: NDArray[np.float64],
        hidden: Array,
        head: Callable[[Array], Array],
        before: Evidence | None = None,
    ) -> None:
        self.gate_logits = gate_logits  # [T, r] of loops 1..r; NaN without a gate
        self.hidden = hidden  # [T, C], the normed state after this loop
        self.before = before  # of the loop before; None after the first
        self._head = head

    @property
    def loop(self) -> int:
        """The loop r that this is the evidence of."""
        return self.gate_logits.shape[1]

    @cached_property
    def logits(self) -> Array:
        """[T, V] of the head on this loop's state."""
        return self._head(self.hidden)

    @property
    def has_logits(self) -> bool:
        """Whether somebody has paid for the logits already."""
        return "logits" in self.__dict__

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """[T, V] log-softmax of the logits."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def first(self, count: int) -> Evidence:
        """The same evidence of the first `count` positions."""
        if count == len(self.hidden):
            return self
        part = Evidence(self.gate_logits[:count], self.hidden[:count], self._head, self.before)
        if self.has_logits:
            part.__dict__["logits"] = self.logits[:count]
        return part


class ExitPolicy(ABC):
    """Base of all rules. Frozen: one policy serves any number of sequences."""

    __slots__ = ()

    def limit(self, config: ModelConfig) -> int:
        """The deepest loop that this policy can ask for; RequestError when the model cannot do what it says."""
        return config.loops

    @abstractmethod
    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        """Which positions [T] stop after the loop of the evidence. Not asked at the limit."""


@dataclass(frozen=True, slots=True)
class FullDepth(ExitPolicy):
    """All loops for every token."""

    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        return np.zeros(len(evidence.hidden), bool)


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

    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        return np.zeros(len(evidence.hidden), bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedPolicy(ExitPolicy):
    """A rule that no position leaves before `floor` or goes beyond `ceiling` loops."""

    floor: int = 1
    ceiling: int | None = None

    def __post_init__(self) -> None:
        _check_depth("floor", self.floor)
        if self.ceiling is not None:
            _check_depth("ceiling", self.ceiling)
            if self.ceiling < self.floor:
                raise RequestError(f"ceiling {self.ceiling} is below floor {self.floor}")

    def limit(self, config: ModelConfig) -> int:
        for name, depth in (("floor", self.floor), ("ceiling", self.ceiling)):
            if depth is not None and depth > config.loops:
                raise RequestError(f"{name} is {depth}; this model was trained for 1 to {config.loops} loops")
        return config.loops if self.ceiling is None else self.ceiling

    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        if evidence.loop < self.floor:
            return np.zeros(len(evidence.hidden), bool)
        return self.decides(evidence)

    @abstractmethod
    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        """Which positions [T] the rule itself stops, floor and ceiling apart."""


@dataclass(frozen=True, slots=True)
class ExitThreshold(BoundedPolicy):
    """Upstream's rule: stop at the first loop where the cumulative exit probability reaches `threshold`.

    CDF_r = 1 - prod_{j<=r}(1 - sigmoid(gate_j)), arXiv 2510.25741; compared through the product, in float64, which
    stays exact near 1. 1.0 runs all loops, 0.0 one.
    """

    threshold: float

    def __post_init__(self) -> None:
        _check_number("exit threshold", self.threshold, 1.0, "0 (one loop) to 1 (all loops)")
        BoundedPolicy.__post_init__(self)

    def limit(self, config: ModelConfig) -> int:
        if not config.has_gate:
            raise NoGateError("this model has no exit gate, so an exit threshold means nothing: choose a fixed number "
                              f"of loops from 1 to {config.loops}")  # fmt: skip
        return BoundedPolicy.limit(self, config)

    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        survival = np.exp(-np.logaddexp(0.0, evidence.gate_logits).sum(axis=1))
        stopped: NDArray[np.bool_] = survival <= 1.0 - self.threshold
        return stopped


@dataclass(frozen=True, slots=True)
class StateChange(BoundedPolicy):
    """Stop when a loop changed the state by at most this share: |h_r - h_{r-1}| <= share * |h_r|, from loop 2 on."""

    share: float

    def __post_init__(self) -> None:
        _check_number("share", self.share, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        if evidence.before is None:
            return np.zeros(len(evidence.hidden), bool)
        change = np.linalg.norm(evidence.hidden - evidence.before.hidden, axis=1)
        stopped: NDArray[np.bool_] = change <= self.share * np.linalg.norm(evidence.hidden, axis=1)
        return stopped


@dataclass(frozen=True, slots=True)
class Confidence(BoundedPolicy):
    """Stop when the head gives its first choice at least this probability. Costs a call of the head each loop."""

    probability: float

    def __post_init__(self) -> None:
        _check_number("probability", self.probability, 1.0, "0 to 1")
        BoundedPolicy.__post_init__(self)

    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        stopped: NDArray[np.bool_] = evidence.log_probabilities.max(axis=1) >= np.log(max(self.probability, 1e-300))
        return stopped


@dataclass(frozen=True, slots=True)
class LowEntropy(BoundedPolicy):
    """Stop when the head's distribution has at most this entropy, in nats. Costs a call of the head each loop."""

    nats: float

    def __post_init__(self) -> None:
        _check_number("nats", self.nats, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        logs = evidence.log_probabilities
        stopped: NDArray[np.bool_] = -(np.exp(logs) * logs).sum(axis=1) <= self.nats
        return stopped


@dataclass(frozen=True, slots=True)
class Agreement(BoundedPolicy):
    """Stop when two successive loops prefer the same token. Costs a call of the head each loop."""

    def decides(self, evidence: Evidence) -> NDArray[np.bool_]:
        if evidence.before is None:
            return np.zeros(len(evidence.hidden), bool)
        stopped: NDArray[np.bool_] = evidence.logits.argmax(axis=1) == evidence.before.logits.argmax(axis=1)
        return stopped


def _check_number(name: str, value: float, most: float, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0.0 <= value <= most:
        raise RequestError(f"{name} is {value!r}; wanted {wanted}")


def _check_depth(name: str, depth: int) -> None:
    if type(depth) is not int or depth < 1:
        raise RequestError(f"{name} is {depth!r}; wanted a number of loops, counted from 1")
