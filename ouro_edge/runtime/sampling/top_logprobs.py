"""The most probable tokens of a row of logits, for one position or for each of its loops (a logit lens)."""

from __future__ import annotations

import math

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.sampling.sampler import check_logits, largest


def top_logprobs(logits: Array, count: int) -> tuple[Candidate, ...]:
    """The `count` most probable ids of logits [V] with log-probabilities, highest first; ties go to the lower id."""
    if not count:
        return ()
    _, norm = check_logits(logits)
    return tuple((int(i), float(logits[i]) - norm) for i in largest(logits, count))


def logit_lens(states: LoopStates, count: int) -> tuple[tuple[Candidate, ...], ...]:
    """A logit lens: the `count` most probable ids, with probabilities, after each loop that ran on one position.

    Costs a call of the head for each loop whose logits were not computed yet.
    """
    if not count:
        return ()
    rows = (states[loop].logits[0] for loop in range(1, states.loop + 1))
    return tuple(tuple((i, math.exp(logprob)) for i, logprob in top_logprobs(row, count)) for row in rows)
