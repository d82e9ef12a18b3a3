"""The likeliest tokens of a row of logits. Knows numpy and how the sampler breaks ties."""

from __future__ import annotations

import math

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.sampling.sampler import check_logits, largest


def likeliest(logits: Array, count: int) -> tuple[Candidate, ...]:
    """The `count` likeliest ids of logits [V] with log-probabilities, the likeliest first; ties go to the lower id."""
    if not count:
        return ()
    _, norm = check_logits(logits)
    return tuple((int(i), float(logits[i]) - norm) for i in largest(logits, count))


def lens(evidence: Evidence, count: int) -> tuple[tuple[Candidate, ...], ...]:
    """For each loop that ran on one position, the `count` likeliest ids with probabilities: a logit lens.

    Costs a call of the head for each loop whose logits nobody has asked for yet.
    """
    loops: list[tuple[Candidate, ...]] = []
    at: Evidence | None = evidence if count else None
    while at is not None:
        loops.append(tuple((i, math.exp(logprob)) for i, logprob in likeliest(at.logits[0], count)))
        at = at.before
    return tuple(reversed(loops))
