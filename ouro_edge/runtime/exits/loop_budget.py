"""A budget of loops for one answer, over any other exit policy. The only rule that remembers earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.exits.policies import ExitPolicy, FullDepth

_MOST = 1000


@dataclass(frozen=True, slots=True)
class LoopBudget(ExitPolicy):
    """At most `mean` loops a token over an answer; within that, `rule` decides.

    What easy tokens leave over is kept for later ones: token n may go as deep as mean * n minus what is spent allows.
    Depth is counted, so positions that are caught up for a deep token are free.
    """

    mean: float
    rule: ExitPolicy = field(default_factory=FullDepth)

    def __post_init__(self) -> None:
        if isinstance(self.mean, bool) or not isinstance(self.mean, (int, float)) or not 1.0 <= self.mean <= _MOST:
            raise RequestError(f"loop budget is {self.mean!r}; wanted a mean number of loops a token, from 1 to "
                               f"{_MOST}")  # fmt: skip
        if not isinstance(self.rule, ExitPolicy) or isinstance(self.rule, LoopBudget):
            raise RequestError(f"the rule of a loop budget is {self.rule!r}; wanted another exit policy")

    def limit(self, config: ModelConfig) -> int:
        return self.rule.limit(config)

    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        raise RequestError("a loop budget counts generated tokens one after the other: use generate or chat")

    def start(self) -> ExitPolicy:
        return _Account(self.mean, self.rule.start())


class _Account(ExitPolicy):
    """A budget being spent by one generation."""

    __slots__ = ("_left", "_mean", "_rule")

    def __init__(self, mean: float, rule: ExitPolicy) -> None:
        self._mean, self._rule, self._left = mean, rule, mean

    def limit(self, config: ModelConfig) -> int:
        # Never below 1: the mean is at least 1, and no token spends more than is left.
        return min(self._rule.limit(config), int(self._left + 1e-9))

    def prompt_limit(self, config: ModelConfig) -> int:
        return self._rule.prompt_limit(config)

    def stops(self, evidence: Evidence) -> NDArray[np.bool_]:
        return self._rule.stops(evidence)

    def output(self, evidence: Evidence) -> Evidence:
        return self._rule.output(evidence)

    def spent(self, depth: int) -> None:
        self._left += self._mean - depth
        self._rule.spent(depth)
