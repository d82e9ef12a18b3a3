"""A sequence with a long context whose keys and values are random, which avoids minutes of prefill.

The numbers have a typical magnitude. Attention then takes the same time as with real ones, because it reads and
multiplies the same bytes whatever their values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence.sequence import TokenSequence


def filled_sequence(model: Model, length: int, loops: int, room: int, rng: np.random.Generator) -> TokenSequence:
    """A sequence whose first `length` positions count as processed by the first `loops` loops.

    Buffers have room for `room` further positions, so that none grows during a measurement. ContextOverflowError when
    the model's context or the machine's memory is too small.
    """
    sequence = model.new_sequence()
    sequence.append(rng.integers(0, model.config.vocab_size, length + room).tolist())
    program = sequence.backend.program
    steps = program.step_of(loops)
    reached = [len(sequence)] * (steps + 1) + [0] * (len(program.passes) - steps)
    waiting = [np.zeros((count, program.width), np.float32) for count in sequence.layout(reached)[1]]
    sequence.load_state(sequence.tokens, reached, waiting, exits=[loops] * len(sequence))
    values: list[NDArray[Any]] = []
    for cache, valid in sequence.caches():
        values = values or [_plausible(array, rng) for array in cache.valid(length)[:1]]
        cache.fill(min(valid, length), values * len(cache.valid(0)))
    sequence.truncate(length)
    return sequence


def _plausible(like: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if like.dtype == np.float32:
        return rng.standard_normal(like.shape, np.float32)
    return rng.integers(0, 64, like.shape, like.dtype)  # for int8, and for pairs of 4-bit numbers
