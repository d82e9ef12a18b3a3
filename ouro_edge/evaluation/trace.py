"""What every loop thought of every token: exit probabilities, depth, and the head's candidates (a logit lens)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.model import Model

Candidate = tuple[int, str, float]  # token id, its text, its probability


@dataclass(frozen=True, slots=True)
class TracedToken:
    """One token and how the position before it came to predict it."""

    id: int
    text: str
    depth: int  # where the policy stopped
    exit_probs: tuple[float, ...]  # [R], of stopping at each loop; NaN without a gate
    loops: tuple[tuple[Candidate, ...], ...]  # the likeliest next tokens after each loop, the likeliest first


def trace(
    model: Model, ids: Sequence[int], *, start: int = 1, exit: ExitPolicy | None = None, candidates: int = 3
) -> list[TracedToken]:
    """Trace the tokens ids[start:], running all loops; `exit` says which depth is reported.

    The first token of a text is predicted by nothing, so `start` is at least 1.
    """
    start, loops = max(1, start), model.config.loops
    policy = exit or model.default_exit()
    count = len(ids) - start
    if count < 1:
        return []
    sequence = model.new_sequence()
    sequence.append(ids[:-1])  # nothing follows the last one
    hidden = np.zeros((loops, len(ids), model.config.hidden_size), np.float32)
    gates = np.full((len(ids), loops), np.nan)

    def collect(loop: int, first: int, rows: Array, logits: Array) -> None:
        hidden[loop - 1, first : first + len(rows)] = rows
        gates[first : first + len(rows), loop - 1] = logits

    for loop in range(1, loops + 1):
        sequence.advance(loop, sink=collect)
    at = slice(start - 1, start - 1 + count)
    depths = model.forward(ids[:-1], exit=policy).depth[at]
    probabilities = exit_probabilities(gates[at], loops)
    lens = [[_candidates(model, logits, candidates) for logits in model.logits(hidden[r, at])] for r in range(loops)]
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


def _candidates(model: Model, logits: Array, count: int) -> tuple[Candidate, ...]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    best = np.argsort(-shifted, kind="stable")[:count]
    return tuple((int(i), _text(model, int(i)), float(shifted[i] / shifted.sum())) for i in best)


def _text(model: Model, token: int) -> str:
    if not model.has_tokenizer:
        return str(token)
    return model.tokenizer.decode([token], skip_special=False)
