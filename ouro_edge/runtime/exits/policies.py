"""Exit rules: when a position stops looping. Pure functions of what the loops have computed so far.

A rule gets the LoopStates of T positions after loop r and returns which of them stop there. Depths count from 1. Every
rule is exact: a position's output equals the one from running all loops and then selecting by the same rule. Rules that
compare a loop with the one before it are in `comparisons`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import NoGateError, RequestError
from ouro_edge.runtime.exits.loop_states import LoopStates


class ExitPolicy(ABC):
    """Base of all rules: a `limit` and a decision `stops`. Frozen: one rule serves any number of sequences."""

    __slots__ = ()

    def limit(self, config: ModelConfig) -> int:
        """The deepest loop that this rule can reach; RequestError if the model does not support the rule."""
        return config.loops

    @property
    def is_fixed(self) -> bool:
        """Whether no position stops before the limit."""
        return False

    @property
    def needs_logits(self) -> bool:
        """Whether `stops` may look at logits, as it may unless a rule says otherwise."""
        return True

    @abstractmethod
    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        """Which positions [T] stop after the last loop of `states`. Not called at the limit."""


@dataclass(frozen=True, slots=True)
class FullDepth(ExitPolicy):
    """All loops for every token."""

    @property
    def is_fixed(self) -> bool:
        return True

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        return np.zeros(len(states), bool)


@dataclass(frozen=True, slots=True)
class FixedDepth(ExitPolicy):
    """The same number of loops, counted from 1, for every token.

    `force` allows fewer loops than a model without early exits was trained for.
    """

    depth: int
    force: bool = False

    def __post_init__(self) -> None:
        check_depth("depth", self.depth)

    @property
    def is_fixed(self) -> bool:
        return True

    def limit(self, config: ModelConfig) -> int:
        _check_most("depth", self.depth, config)
        if self.depth < config.loops and not config.family.exits and not self.force:
            raise RequestError(f"depth is {self.depth}; this model was trained for {config.loops} loops only; fewer "
                               "give wrong text: leave the number out, or insist with --force-loops (in Python "
                               "FixedDepth(force=True))")  # fmt: skip
        return self.depth

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        return np.zeros(len(states), bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedPolicy(ExitPolicy):
    """A rule that no position leaves before `floor` or goes beyond `ceiling` loops."""

    floor: int = 1
    ceiling: int | None = None

    def __post_init__(self) -> None:
        check_depth("floor", self.floor)
        if self.ceiling is not None:
            check_depth("ceiling", self.ceiling)
            if self.ceiling < self.floor:
                raise RequestError(f"ceiling {self.ceiling} is below floor {self.floor}")

    def limit(self, config: ModelConfig) -> int:
        if not config.family.exits:
            raise RequestError(f"this model was trained for {config.loops} loops only, so an exit rule means nothing: "
                               "leave it out")  # fmt: skip
        for name, depth in (("floor", self.floor), ("ceiling", self.ceiling)):
            if depth is not None:
                _check_most(name, depth, config)
        return config.loops if self.ceiling is None else self.ceiling

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        if states.loop < self.floor:
            return np.zeros(len(states), bool)
        return self.decides(states)

    @abstractmethod
    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        """Which positions [T] the rule itself stops, floor and ceiling apart."""


@dataclass(frozen=True, slots=True)
class ExitThreshold(BoundedPolicy):
    """Upstream's rule: stop at the first loop where the cumulative exit probability reaches `threshold`.

    CDF_r = 1 - prod_{j<=r}(1 - sigmoid(gate_j)), arXiv 2510.25741; compared through the product, in float64, which
    stays exact near 1. 1.0 runs all loops, 0.0 one.
    """

    threshold: float

    def __post_init__(self) -> None:
        check_number("exit threshold", self.threshold, 1.0, "0 (one loop) to 1 (all loops)")
        BoundedPolicy.__post_init__(self)

    def limit(self, config: ModelConfig) -> int:
        check_gate(config, "an exit threshold")
        return BoundedPolicy.limit(self, config)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):  # damaged weights give NaN, which never stops early
            survival = np.exp(-np.logaddexp(0.0, states.gate_logits).sum(axis=1))
        stopped: NDArray[np.bool_] = survival <= 1.0 - self.threshold
        return stopped


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold(BoundedPolicy):
    """Stop when the head gives its first choice at least this probability. Costs a call of the head each loop."""

    probability: float

    def __post_init__(self) -> None:
        check_number("probability", self.probability, 1.0, "0 to 1")
        BoundedPolicy.__post_init__(self)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        stopped: NDArray[np.bool_] = states.log_probabilities.max(axis=1) >= np.log(max(self.probability, 1e-300))
        return stopped


@dataclass(frozen=True, slots=True)
class EntropyThreshold(BoundedPolicy):
    """Stop when the head's distribution has at most this entropy, in nats. Costs a call of the head each loop."""

    nats: float

    def __post_init__(self) -> None:
        check_number("nats", self.nats, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        stopped: NDArray[np.bool_] = states.entropy <= self.nats
        return stopped


def _trained(config: ModelConfig) -> str:
    return f"1 to {config.loops}" if config.family.exits else f"{config.loops}"


def check_gate(config: ModelConfig, what: str) -> None:
    """NoGateError when the model has no exit gate."""
    if not config.has_gate:
        raise NoGateError(f"this model has no exit gate, so {what} means nothing: choose a fixed number of loops "
                          f"from 1 to {config.loops}")  # fmt: skip


def _check_most(name: str, depth: int, config: ModelConfig) -> None:
    if depth > config.most_loops > config.loops:
        raise RequestError(f"{name} is {depth}; this model runs 1 to {config.most_loops} loops")
    if depth > config.most_loops:
        raise RequestError(f"{name} is {depth}; this model was trained for {_trained(config)} loops; more need "
                           "--force-loops (in Python load(loops=))")  # fmt: skip


def check_number(name: str, value: float, most: float, expected: str) -> None:
    """RequestError unless it is a number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0.0 <= value <= most:
        raise RequestError(f"{name} is {value!r}; expected {expected}")


def check_depth(name: str, depth: int) -> None:
    """RequestError unless it is a number of loops."""
    if type(depth) is not int or depth < 1:
        raise RequestError(f"{name} is {depth!r}; expected a number of loops, counted from 1")
