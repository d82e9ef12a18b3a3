"""The most probable tokens of a row of logits, with the sampler's tie-breaking."""

from __future__ import annotations

import math

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.sampling.sampler import check_logits, largest


def top_logprobs(logits: Array, count: int) -> tuple[Candidate, ...]:
    """The `count` most probable ids of logits [V] with log-probabilities, best first; ties go to the lower id."""
    if not count:
        return ()
    _, norm = check_logits(logits)
    return tuple((int(i), float(logits[i]) - norm) for i in largest(logits, count))


def logit_lens(states: LoopStates, count: int) -> tuple[tuple[Candidate, ...], ...]:
    """For each loop that ran on one position, the `count` most probable ids with probabilities.

    Costs a head call for each loop whose logits are not known yet.
    """
    if not count:
        return ()
    rows = (states[loop].logits[0] for loop in range(1, states.loop + 1))
    return tuple(tuple((i, math.exp(logprob)) for i, logprob in top_logprobs(row, count)) for row in rows)
