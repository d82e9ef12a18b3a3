"""What early exits mean in a model with prelude, core and coda: the oracle of the tests. See `reference` and `raven`.

Row by row, a state row being [e | s]:

    embed     [scale * embedding | s0]    s0 is zero
    prelude   [x | s] -> [prelude(x) | s]    once for each position
    core      [e | s] -> [e | core(adapter [s, e])]    N times; a position may exit after each
    coda      [e | s] -> [e | norm(coda(s))]    once, on the state at the exit; Huginn's coda gets norm(s)

Every step of the core has keys and values of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.programs.raven import CODA, CORE, PRELUDE
from ouro_edge.arch.reference import rope_tables, run_pass
from ouro_edge.arch.weights import Array


def core_states(
    config: ModelConfig,
    weights: Mapping[str, Array],
    ids: NDArray[np.integer],
    steps: int,
    start: Array | None = None,
) -> Array:
    """Rows [steps, T, 2C] after each step of the core, all positions at all steps; `start` [T, C] is s0, else zero."""
    program, (cos, sin) = loop_program(config), rope_tables(config, len(ids))
    rows = program.first_rows(weights["embedding"][ids])
    if start is not None:
        rows[:, config.hidden_size :] = start
    rows = run_pass(config, weights, program.stack(PRELUDE), rows, cos, sin)
    found = []
    for _ in range(steps):
        rows = run_pass(config, weights, program.stack(CORE), rows, cos, sin)
        found.append(rows)
    return np.stack(found)


def coda(config: ModelConfig, weights: Mapping[str, Array], rows: Array) -> Array:
    """The rows [T, C] that the head reads, of rows [T, 2C] of positions 0..T at their exits."""
    program, (cos, sin) = loop_program(config), rope_tables(config, len(rows))
    return program.output(run_pass(config, weights, program.stack(CODA), rows, cos, sin), config.hidden_size)


# What a rule looks at for a position after step s: states [s, C] of this position, and a function that gives the logits
# [V] of one of the steps, counted from 1.
Stops = Callable[[Array, Callable[[int], Array]], bool]


def exact(
    config: ModelConfig,
    weights: Mapping[str, Array],
    ids: NDArray[np.integer],
    limit: int,
    stops: Stops,
    prompt: int = 1,
    start: Array | None = None,
) -> tuple[NDArray[np.int64], Array]:
    """Exit depth [T] and head rows [T, C] of every position: what "exact" means for a model with a coda.

    All positions run all `limit` steps of the core. A position's exit is the first step after which `stops` is true, or
    the limit; those before the last of the `prompt` exit at the limit. The coda runs over the states at the exits, in
    the order of positions. A rule that looks at logits sees those of the coda over the exits of all earlier positions.
    """
    states = core_states(config, weights, ids, limit, start)
    width, depths = config.hidden_size, np.full(len(ids), limit, np.int64)
    chosen = states[limit - 1].copy()
    for at in range(prompt - 1, len(ids)):

        def logits(step: int, at: int = at) -> Array:
            rows = np.concatenate([chosen[:at], states[step - 1, at : at + 1]])
            return coda(config, weights, rows)[-1] @ weights["head"].T

        for step in range(1, limit):
            if stops(states[:step, at, width:], logits):
                depths[at] = step
                break
        chosen[at] = states[depths[at] - 1, at]
    return depths, coda(config, weights, chosen)
