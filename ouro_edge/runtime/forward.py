"""Forward passes over given tokens: states at the exit or after every loop, scores, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import Head
from ouro_edge.runtime.exits.policies import ExitPolicy, FullDepth
from ouro_edge.runtime.sampling.sampler import check_logits
from ouro_edge.runtime.sampling.top_logprobs import top_logprobs
from ouro_edge.runtime.sequence.sequence import TokenSequence

HEAD_ROWS = 256  # rows of logits made at a time: 48 MiB at a vocabulary of 49152


@dataclass(frozen=True, slots=True)
class Forward:
    """What one pass over a prompt gives; each position at its own exit."""

    logits: Array  # [T, V]
    depth: NDArray[np.int64]  # [T], counted from 1
    exit_probs: NDArray[np.float64]  # [T, R]; NaN beyond a position's depth
    hidden: Array  # [T, W], the normed state rows that the logits are made of


@dataclass(frozen=True, slots=True)
class Score:
    """How likely each token of a text is after those before it; the first, which nothing predicts, is left out."""

    logprobs: NDArray[np.float64]  # [T - 1]: log-probability of ids[t + 1] after ids[..t]
    top: tuple[tuple[Candidate, ...], ...]  # for each of the T - 1 the most probable ids there, best first
    depth: NDArray[np.int64]  # [T - 1]: loops of the position that predicted the token


@dataclass(frozen=True, slots=True)
class States:
    """Each position's state where the exit rule stopped it."""

    hidden: Array  # [T, W], normed
    depth: NDArray[np.int64]  # [T]
    exit_probs: NDArray[np.float64]  # [T, R]


@dataclass(frozen=True, slots=True)
class AllStates:
    """The states of every position after every loop."""

    hidden: Array  # [R, T, W], normed
    gate_logits: NDArray[np.float64]  # [T, R]; NaN without a gate


def run_forward(
    sequence: TokenSequence, ids: Sequence[int], policy: ExitPolicy, cancel: Cancel | None = None, prefix: int = 0
) -> States:
    """Make the sequence hold exactly `ids` and loop over all positions until the exit rule has stopped each.

    A loop runs only as far as the last position that needs it.
    """
    config = sequence.config
    sequence.truncate(0)
    sequence.set_prompt(ids, prefix)
    depth = np.zeros(len(ids), np.int64)
    hidden = np.empty((len(ids), sequence.backend.program.width), np.float32)
    loops = max(config.loops, policy.limit(config))
    probs = np.full((len(ids), loops), np.nan)
    for exited in sequence.run_positions(range(len(ids)), policy, cancel):
        if exited.positions:
            hidden[exited.positions] = exited.states.output
            depth[exited.positions] = exited.states.loop
            probs[exited.positions] = exit_probabilities(exited.states.gate_logits, loops)
    return States(hidden, depth, probs)


def run_states(sequence: TokenSequence, ids: Sequence[int], cancel: Cancel | None = None, prefix: int = 0) -> AllStates:
    """Make the sequence hold exactly `ids` and run all loops over all positions.

    Behind a coda, the rows after a loop are those of a text whose positions all exit there.
    """
    sequence.truncate(0)
    sequence.set_prompt(ids, prefix)
    *_, last = sequence.run_positions(range(len(ids)), FullDepth(), cancel)
    hidden = np.stack([last.states[loop].hidden for loop in range(1, last.states.loop + 1)])
    if sequence.coda is not None:
        hidden = np.stack([sequence.coda.read_uniform(rows, cancel) for rows in hidden])
    return AllStates(hidden, last.states.gate_logits)


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
            likely.append(top_logprobs(logits, top))
    return Score(logprobs, tuple(likely), states.depth)


def pool(hidden: Array) -> Array:
    """One vector [C] of length 1 for a text: the mean of its normed states [T, C].

    The mean, because the last state alone is about the next token: models that were not trained to embed tell texts
    apart better by the mean.
    """
    mean = hidden.mean(axis=0, dtype=np.float64)
    vector: Array = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return vector
