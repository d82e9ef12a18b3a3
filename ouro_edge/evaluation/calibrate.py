"""Measures how far keys and values reach, so that a KV cache can be kept in int8 or int4. Above runtime.

Text runs through the bundle with a float cache at full depth, and the cache itself is read afterwards: for values the
largest magnitude of each channel, for keys that of each rotary pair, which no position can exceed by rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import numpy as np

from ouro_edge.bundle import Bundle
from ouro_edge.errors import RequestError
from ouro_edge.kv_ranges import ranges_shape, write_ranges
from ouro_edge.runtime.exits import FullDepth
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence import TokenSequence
from ouro_edge.weights import Array

_TOKENS = 512  # enough for stable maxima, a minute or two for 1.4B parameters on two cores
_WINDOW = 64  # tokens that see each other: the float cache of more would take more memory than the model


def calibrate(
    bundle: Bundle, text: str | None = None, *, tokens: int = _TOKENS, threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:  # fmt: skip
    """Store KV ranges in a bundle, measured on `text` or on the built-in one; returns how many tokens were used.

    A model without tokenizer is measured on seeded random ids. RequestError when the text is too short to tell.
    """
    with Model(bundle, threads=threads, kv="fp32") as model:
        ids = _ids(model, text, tokens)
        ranges = np.zeros(ranges_shape(bundle.config), np.float32)
        for start in range(0, len(ids), _WINDOW):
            if progress:
                progress(start, len(ids), "tokens")
            sequence = model.new_sequence()
            sequence.feed(ids[start : start + _WINDOW])
            sequence.think(FullDepth())
            np.maximum(ranges, _reach(sequence), out=ranges)
    write_ranges(bundle, ranges, {"tokens": len(ids), "text": "built-in" if text is None else "given"})
    if progress:
        progress(len(ids), len(ids), "")
    return len(ids)


def _reach(sequence: TokenSequence) -> Array:
    """Ranges [R, L, 2, KV, D] over all positions of a sequence at full depth."""
    ranges = np.zeros(ranges_shape(sequence.config), np.float32)
    for loop in range(1, sequence.config.loops + 1):
        arrays = sequence.kv_of(loop).arrays
        for i in range(sequence.config.num_layers):
            ranges[loop - 1, i, 0] = _pair_reach(arrays[2 * i][0, :, : len(sequence)])
            ranges[loop - 1, i, 1] = np.abs(arrays[2 * i + 1][0, :, : len(sequence)]).max(axis=1)
    return ranges


def built_in_text() -> str:
    """Prose, dialogue, numbers and code in a few hundred tokens."""
    return resources.files("ouro_edge.evaluation").joinpath("calibration.txt").read_text(encoding="utf-8")


def _pair_reach(keys: Array) -> Array:
    """Largest length [KV, D] of each rotary pair (i, i + D/2) over keys [KV, T, D], the same for both halves."""
    first, second = np.split(keys, 2, axis=-1)
    reach = np.sqrt(np.square(first) + np.square(second)).max(axis=1)
    return np.concatenate([reach, reach], axis=-1)


def _ids(model: Model, text: str | None, tokens: int) -> list[int]:
    tokens = min(tokens, model.config.max_positions)
    if not model.has_tokenizer:
        if text is not None:
            raise RequestError("this model has no tokenizer, so it is calibrated on random ids: leave the text out")
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens).tolist()
    else:
        ids = model.tokenizer.encode(built_in_text() if text is None else text)[:tokens]
    if len(ids) < min(16, tokens):
        raise RequestError(f"the calibration text has {len(ids)} tokens; wanted some hundreds")
    return ids
