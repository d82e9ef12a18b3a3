"""The exit rule that mixes all loops instead of choosing one: upstream's expected logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy, check_gate


@dataclass(frozen=True, slots=True)
class ExpectedLogits(ExitPolicy):
    """All loops, and of their logits the mean weighted by the exit probabilities. Saves no loop.

    The head is linear, so the mean is taken over the states, and the head is called once.
    """

    def limit(self, config: ModelConfig) -> int:
        check_gate(config, "a weighted exit")
        return config.loops

    def stops(self, states: LoopStates) -> NDArray[np.bool_]:
        return np.zeros(len(states), bool)


def exit_states(policy: ExitPolicy, states: LoopStates) -> LoopStates:
    """The states with which positions leave that stop here: their own, or the weighted mean over all their loops."""
    if not isinstance(position_rule(policy), ExpectedLogits):
        return states
    weights = exit_probabilities(states.gate_logits, states.loop).astype(np.float32)
    mixed = np.zeros_like(states.hidden)
    for loop in range(states.loop, 0, -1):
        mixed += weights[:, loop - 1, None] * states[loop].hidden
    return states.with_hidden(mixed)
