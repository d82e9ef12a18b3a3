"""One pass over given tokens, each position at its own exit: states, scores and embeddings. Generates nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sampling.sampler import check_logits
from ouro_edge.runtime.sampling.top_logprobs import likeliest
from ouro_edge.runtime.sequence.sequence import TokenSequence

HEAD_ROWS = 256  # rows of logits made at a time: 48 MiB at a vocabulary of 49152

Head = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Forward:
    """What one pass over a prompt gives; each position at its own exit."""

    logits: Array  # [T, V]
    depth: NDArray[np.int64]  # [T], counted from 1
    exit_probs: NDArray[np.float64]  # [T, R]; NaN beyond a position's depth, where no gate was asked
    hidden: Array  # [T, C], the normed states that the logits are made of


@dataclass(frozen=True, slots=True)
class Score:
    """How likely each token of a text is after those before it; the first is predicted by nothing and left out."""

    logprobs: NDArray[np.float64]  # [T - 1]: log-probability of ids[t + 1] after ids[..t]
    top: tuple[tuple[Candidate, ...], ...]  # for each of the T - 1 the likeliest ids there, the likeliest first
    depth: NDArray[np.int64]  # [T - 1]: loops of the position that predicted the token


@dataclass(frozen=True, slots=True)
class States:
    """Each position's state where the policy stopped it."""

    hidden: Array  # [T, C], normed
    depth: NDArray[np.int64]  # [T]
    exit_probs: NDArray[np.float64]  # [T, R]


def run_forward(
    sequence: TokenSequence, ids: Sequence[int], policy: ExitPolicy, head: Head, cancel: Cancel | None = None
) -> States:
    """Make the sequence hold exactly `ids` and loop over all positions until the policy has stopped each.

    A loop runs only as far as the last position that wants it. Logits that a policy looks at are dropped at once, so
    that memory does not grow with T x V.
    """
    config = sequence.config
    sequence.truncate(0)
    sequence.set_prompt(ids)
    limit = policy.limit(config)
    depth = np.zeros(len(ids), np.int64)
    gates = np.full((len(ids), config.loops), np.nan)
    hidden = np.empty((len(ids), config.hidden_size), np.float32)
    shown: list[Array] = []  # [T, C] after each loop, as far as it was run; the calls of loops need not start alike

    def evidence(part: slice) -> Evidence:
        seen: Evidence | None = None
        for loop, rows in enumerate(shown, start=1):
            seen = Evidence(gates[part, :loop], rows[part], head, seen)
        assert seen is not None
        return seen

    def collect(loop: int, start: int, rows: Array, logits: Array) -> None:
        part = slice(start, start + len(rows))
        gates[part, loop - 1] = logits
        if len(shown) < loop:
            shown.append(np.empty_like(hidden))
        shown[-1][part] = rows
        now = evidence(part)
        stopping = (depth[part] == 0) & (np.ones(len(rows), bool) if loop == limit else policy.stops(now))
        if stopping.any():
            hidden[part][stopping] = policy.output(now).hidden[stopping]
            depth[part][stopping] = loop

    try:
        for loop in range(1, limit + 1):
            sequence.advance(loop, int(np.flatnonzero(depth == 0)[-1]) + 1, collect, cancel)
            if depth.all():
                break
    finally:
        sequence.settle()
    probs = np.full((len(ids), config.loops), np.nan)
    for loop in range(1, limit + 1):
        at = depth == loop
        probs[at] = exit_probabilities(gates[at, :loop], config.loops)
    return States(hidden, depth, probs)


def run_score(states: States, ids: Sequence[int], top: int, head: Head, cancel: Cancel | None = None) -> Score:
    """Log-probabilities of ids[1:] from the states of ids[:-1]; the head sees HEAD_ROWS rows at a time."""
    targets = ids[1:]
    logprobs = np.empty(len(targets))
    likely: list[tuple[Candidate, ...]] = []
    for start in range(0, len(targets), HEAD_ROWS):
        if cancel is not None:
            cancel.check()
        for t, logits in enumerate(head(states.hidden[start : start + HEAD_ROWS]), start):
            logprobs[t] = float(logits[targets[t]]) - check_logits(logits)[1]
            likely.append(likeliest(logits, top))
    return Score(logprobs, tuple(likely), states.depth)


def pool(states: States) -> Array:
    """One vector [C] of length 1 for a text: the mean of its normed states.

    The mean, because the last state alone is about the next token: models that were not trained to embed tell texts
    apart better by the mean.
    """
    mean = states.hidden.mean(axis=0, dtype=np.float64)
    vector: Array = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return vector
