"""What every loop predicts for every token: exit probabilities, depth, and the head's candidates (a logit lens)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward import HEAD_ROWS
from ouro_edge.runtime.model import Model

Candidate = tuple[int, str, float]  # token id, its text, its probability


@dataclass(frozen=True, slots=True)
class TracedToken:
    """One token and what each loop of the position before it predicted."""

    id: int
    text: str
    depth: int  # where the exit rule stopped
    exit_probs: tuple[float, ...]  # [R], of stopping at each loop; NaN without a gate
    loops: tuple[tuple[Candidate, ...], ...]  # the most probable next tokens after each loop, best first


def trace(
    model: Model,
    ids: Sequence[int],
    *,
    start: int = 1,
    exit: ExitPolicy | None = None,
    candidates: int = 3,
    prefix: int = 0,
) -> list[TracedToken]:
    """Trace the tokens ids[start:], running all loops; `exit` says which depth is reported.

    Nothing predicts the first token of a text, so `start` is at least 1. `prefix` is that of `Model.forward`.
    """
    start, loops = max(1, start), model.config.loops
    policy = exit or model.default_exit()
    count = len(ids) - start
    if count < 1:
        return []
    states = model.states(ids[:-1], prefix=prefix)  # nothing follows the last token
    at = slice(start - 1, start - 1 + count)
    gates, hidden = states.gate_logits[at], states.hidden[:, at]
    if model.backend.program.coda is None:
        depths = exit_depths(policy, model, gates, hidden)
    else:  # a rule sees other logits than those of a text whose positions all exit at one depth
        depths = model.depths(ids[:-1], exit=policy)[at]
    probabilities = exit_probabilities(gates, loops)
    lens = [[_candidates(model, logits, candidates) for logits in model.logits(rows)] for rows in hidden]
    return [
        TracedToken(
            ids[start + t],
            _text(model, ids[start + t]),
            int(depths[t]),
            tuple(probabilities[t].tolist()),
            tuple(lens[r][t] for r in range(loops)),
        )
        for t in range(count)
    ]


def exit_depths(policy: ExitPolicy, model: Model, gates: NDArray[np.float64], hidden: Array) -> NDArray[np.int64]:
    """Depths [T] at which an exit rule stops positions, from gate logits [T, R] and states [R, T, C] of all loops."""
    program = model.backend.program
    limit = program.exit_at(policy.limit(model.config))
    depths = np.full(len(gates), limit)
    for loop in range(limit - 1, 0, -1):
        if program.may_exit(loop):
            for first in range(
                0, len(gates), HEAD_ROWS
            ):  # logits that the rule looks at are not held for all positions
                part = slice(first, first + HEAD_ROWS)
                stops = policy.stops(LoopStates(gates[part, :loop], list(hidden[:loop, part]), model.logits))
                depths[part][stops] = loop
    return depths


def _candidates(model: Model, logits: Array, count: int) -> tuple[Candidate, ...]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    best = np.argsort(-shifted, kind="stable")[:count]
    return tuple((int(i), _text(model, int(i)), float(shifted[i] / shifted.sum())) for i in best)


def _text(model: Model, token: int) -> str:
    if not model.has_tokenizer:
        return str(token)
    return model.tokenizer.decode([token], skip_special=False)
