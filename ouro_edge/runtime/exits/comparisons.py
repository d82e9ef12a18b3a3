"""Exit rules that compare a loop with the one before it. `measure` is what a rule compares, its value the bound.

Huginn (arXiv 2502.05171) has these rules too, with the defaults that the docstrings name. Its code averages what states
changed over the positions of a call; here every position has its own measure.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import BoundedPolicy, check_depth, check_number

Measures = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(BoundedPolicy):
    """A rule that stops a position when what a loop changed is at most a bound."""

    @abstractmethod
    def measure(self, states: LoopStates) -> Measures:
        """What the last loop changed [T]; NaN where there is nothing to compare, which never stops."""

    def _at_most(self, states: LoopStates, bound: float) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):  # so do damaged weights
            stopped: NDArray[np.bool_] = self.measure(states) <= bound
        return stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfStates(Comparison):
    """A comparison of two states. Costs no call of the head."""

    @property
    def needs_logits(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class StateChange(_OfStates):
    """Stop when a loop changed the state by at most this share of its length: |h_r - h_{r-1}| / |h_r|, from loop 2 on.

    Huginn: `latent-diff`, below 0.03.
    """

    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def measure(self, states: LoopStates) -> Measures:
        if states.loop == 1:
            return _nothing(states)
        after, before = states.state, states[states.loop - 1].state
        return _lengths(after - before) / np.maximum(_lengths(after), np.finfo(np.float32).tiny)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        return self._at_most(states, self.share)


@dataclass(frozen=True, slots=True)
class StateTurn(_OfStates):
    """Stop when a loop turned the state by a cosine distance of at most `distance`: 1 - cos(h_r, h_{r-1}), from loop 2.

    Huginn: `cosine`, below 0.001.
    """

    distance: float

    def __post_init__(self) -> None:
        check_number("distance", self.distance, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def measure(self, states: LoopStates) -> Measures:
        if states.loop == 1:
            return _nothing(states)
        after, before = (part.state.astype(np.float64) for part in (states, states[states.loop - 1]))
        lengths = np.maximum(_lengths(after) * _lengths(before), np.finfo(np.float32).tiny)
        return 1 - (after * before).sum(axis=1) / lengths

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        return self._at_most(states, self.distance)


@dataclass(frozen=True, slots=True)
class _InNats(Comparison):
    """A comparison of two of the head's distributions, in nats. Costs a call of the head each loop."""

    nats: float

    def __post_init__(self) -> None:
        check_number("nats", self.nats, np.inf, "a number of at least 0")
        BoundedPolicy.__post_init__(self)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        return self._at_most(states, self.nats)


@dataclass(frozen=True, slots=True)
class DivergenceThreshold(_InNats):
    """Stop when a loop changed the head's distribution by a divergence of at most `nats`: KL(p_{r-1} || p_r).

    The distribution before loop 1 is uniform. Huginn: `kl`, below 0.001. Costs a call of the head each loop.
    """

    def measure(self, states: LoopStates) -> Measures:
        logs = states.log_probabilities
        if states.loop == 1:
            uniform: Measures = -np.log(logs.shape[1]) - logs.mean(axis=1)
            return uniform
        before = states[states.loop - 1].log_probabilities
        divergence: Measures = (np.exp(before) * (before - logs)).sum(axis=1)
        return divergence


@dataclass(frozen=True, slots=True)
class EntropyChange(_InNats):
    """Stop when a loop changed the entropy of the head's distribution by at most `nats`, from loop 2 on.

    Huginn: `entropy-diff`, below 0.001. Costs a call of the head each loop.
    """

    def measure(self, states: LoopStates) -> Measures:
        if states.loop == 1:
            return _nothing(states)
        change: Measures = np.abs(states.entropy - states[states.loop - 1].entropy)
        return change


@dataclass(frozen=True, slots=True)
class Agreement(BoundedPolicy):
    """Stop when two successive loops prefer the same token. Costs a call of the head each loop."""

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        return unchanged_loops(states, most=1) >= 1


@dataclass(frozen=True, slots=True)
class StableChoice(BoundedPolicy):
    """Stop when the head's first choice has not changed for this many loops; 1 is `Agreement`.

    Huginn: `argmax-stability`, 5 loops. Costs a call of the head each loop.
    """

    loops: int

    def __post_init__(self) -> None:
        check_depth("the number of loops", self.loops)
        BoundedPolicy.__post_init__(self)

    def decides(self, states: LoopStates) -> NDArray[np.bool_]:
        return unchanged_loops(states, most=self.loops) >= self.loops


def unchanged_loops(states: LoopStates, most: int) -> NDArray[np.int64]:
    """For how many loops up to the last one the head's first choice [T] has not changed; `most` at most."""
    count, same = np.zeros(len(states), np.int64), np.ones(len(states), bool)
    choice = states.logits.argmax(axis=1)
    for loop in range(states.loop - 1, max(0, states.loop - 1 - most), -1):
        same &= states[loop].logits.argmax(axis=1) == choice
        if not same.any():
            break
        count += same
    return count


def _nothing(states: LoopStates) -> Measures:
    return np.full(len(states), np.nan)


def _lengths(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    lengths: NDArray[np.floating] = np.linalg.norm(rows, axis=1)
    return lengths
