"""A budget of loops for one answer, over any other exit rule. The only rule that depends on earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy, FullDepth

_MAX_MEAN_LOOPS = 1000


@dataclass(frozen=True, slots=True)
class LoopBudget(ExitPolicy):
    """At most `mean` loops per token over an answer; within that, `rule` decides.

    Loops that shallow tokens leave over are kept for later ones: token n may use mean * n minus what earlier tokens
    used. Only depth is counted, so positions that are caught up for a deep token are free.
    """

    mean: float
    rule: ExitPolicy = field(default_factory=FullDepth)

    def __post_init__(self) -> None:
        valid = isinstance(self.mean, (int, float)) and not isinstance(self.mean, bool)
        if not valid or not 1.0 <= self.mean <= _MAX_MEAN_LOOPS:
            raise RequestError(f"loop budget is {self.mean!r}; expected a mean number of loops per token, from 1 to "
                               f"{_MAX_MEAN_LOOPS}")  # fmt: skip
        if not isinstance(self.rule, ExitPolicy) or isinstance(self.rule, (LoopBudget, _Capped)):
            raise RequestError(f"the rule of a loop budget is {self.rule!r}; expected another exit rule")

    def limit(self, config: ModelConfig) -> int:
        return self.rule.limit(config)

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        raise RequestError("a loop budget counts generated tokens one after the other: use generate or chat")


class ExitTracker:
    """The exit rule of each token of one generation; only a LoopBudget changes from token to token."""

    def __init__(self, policy: ExitPolicy) -> None:
        self._policy = policy
        self._left = policy.mean if isinstance(policy, LoopBudget) else 0.0  # loops that the next token may use

    def next_rule(self) -> ExitPolicy:
        """The rule for the next token."""
        if not isinstance(self._policy, LoopBudget):
            return self._policy
        # At least 1: the mean is at least 1, and no token uses more than is left.
        return _Capped(self._policy.rule, int(self._left + 1e-9))

    def record(self, depth: int) -> None:
        """Count the depth of a generated token."""
        if isinstance(self._policy, LoopBudget):
            self._left += self._policy.mean - depth


@dataclass(frozen=True, slots=True)
class _Capped(ExitPolicy):
    """A rule that stops every position at loop `most`."""

    rule: ExitPolicy
    most: int

    def limit(self, config: ModelConfig) -> int:
        return min(self.rule.limit(config), self.most)

    @property
    def is_fixed(self) -> bool:
        return self.rule.is_fixed

    @property
    def needs_logits(self) -> bool:
        return self.rule.needs_logits

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        return self.rule.stops(states)


def position_rule(policy: ExitPolicy) -> ExitPolicy:
    """The rule for positions that are not generated tokens (prompts, scores): a budget does not count those."""
    return policy.rule if isinstance(policy, (LoopBudget, _Capped)) else policy
