"""Measures the ranges of keys and values, from which the scales of an int8 or int4 KV cache follow. Uses runtime.

Text runs through the bundle with a float cache at full depth; then the cache is read. The range of a value channel is
its largest magnitude, the range of a key channel the largest length of its rotary pair, which rotation cannot change.

Much of the attention goes to the first token ("attention sinks", arXiv 2309.17453), and its keys and values are
constant when all prompts start with the same token. Ranges are widened so that 8 bits represent these exactly, which
halves the divergence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.kv_ranges import ranges_shape, write_ranges
from ouro_edge.errors import RequestError, TemplateError
from ouro_edge.runtime.exits.policies import FullDepth
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.open_model import open_model
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.progress import Progress

_DEFAULT_TOKENS = 640  # enough for stable maxima; 15 seconds for 1.4B parameters on two cores
_MIN_TOKENS = 16
# For keys and values. Other text exceeds the measured ranges, and at 8 bits clipping costs more than a larger step.
_HEADROOM_FACTORS = np.array([1.05, 1.3], np.float32)
_MAX_CODE = 127
_WINDOW_TOKENS = 64  # tokens per sequence: a longer float cache would need more memory than the model


@dataclass(frozen=True, slots=True)
class Calibration:
    """Settings for measuring KV ranges; pass None instead to skip the measurement."""

    text: str | None = None  # None: the built-in page
    tokens: int = _DEFAULT_TOKENS  # maximum number

    def __post_init__(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise RequestError(f"the calibration text is a {type(self.text).__name__}; expected a str or None")
        if type(self.tokens) is not int or self.tokens < _MIN_TOKENS:
            raise RequestError(f"tokens is {self.tokens!r}; expected a whole number of at least {_MIN_TOKENS}")


def calibrate(
    model: str | os.PathLike[str] | Bundle,
    text: str | None = None,
    *,
    tokens: int = _DEFAULT_TOKENS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Measure the KV ranges of an exported model and store them in its directory; earlier ranges are replaced.

    A model without a tokenizer is measured on random ids with a fixed seed. Needs the memory of the loaded model and of
    a float32 cache of 64 tokens.

    Args:
        model: An exported directory, or an open bundle.
        text: Text similar to the intended use. Default: a built-in page.
        tokens: At most this many tokens of the text, at least 16.
        threads: CPU threads. Default: as for `load`.
        progress: Called with tokens done and tokens in all.

    Returns:
        The number of tokens that were run.

    Raises:
        RequestError: The text is too short, or there is a text and the model has no tokenizer.
        BundleError: `model` is not an exported directory, is damaged, or cannot be written to.
    """
    bundle = model if isinstance(model, Bundle) else open_bundle(Path(model))
    ids, ranges = _measure(bundle, Calibration(text, tokens), threads, progress)
    write_ranges(bundle, ranges, {"tokens": len(ids), "text": "built-in" if text is None else "given"})
    if progress:
        progress(len(ids), len(ids), "")
    return len(ids)


def _measure(
    bundle: Bundle, calibration: Calibration, threads: int | None, progress: Progress | None
) -> tuple[list[int], Array]:
    """The token ids that were run, and the measured ranges [R, L, 2, KV, D]."""
    with open_model(bundle, threads=threads, kv="fp32", parallel_packing=False, open_head=False) as model:
        tokenizer = model.tokenizer if model.has_tokenizer else None
        ids = calibration_ids(tokenizer, model.config.vocab_size, calibration)
        opening = _opening(model)
        ranges = np.zeros(ranges_shape(bundle.config), np.float32)
        window = min(_WINDOW_TOKENS, model.config.max_positions)
        for start in range(0, len(ids), window):
            if progress:
                progress(start, len(ids), "KV ranges")
            np.maximum(ranges, _reach(model, ids[start : start + window]), out=ranges)
        if opening:
            np.maximum(ranges, _reach(model, opening), out=ranges)
        ranges *= _HEADROOM_FACTORS[:, None, None]
        if opening:
            ranges = _exact_at(_reach(model, opening[:1], pairs=False), ranges)
    return ids, ranges


def _reach(model: Model, ids: list[int], pairs: bool = True) -> Array:
    """Largest magnitudes [R, L, 2, KV, D] at full depth; for keys per rotary pair (`pairs`) or per channel."""
    sequence = model.new_sequence()
    sequence.append(ids)
    sequence.run_until_exit(FullDepth())
    ranges = np.zeros(ranges_shape(model.config), np.float32)
    caches = sequence.caches()
    for place, number in enumerate(model.backend.program.usual_caches):
        arrays = caches[number][0].valid(len(ids))
        for i in range(len(arrays) // 2):
            keys, values = arrays[2 * i], arrays[2 * i + 1]
            ranges[place, i, 0] = _pair_reach(keys) if pairs else np.abs(keys).max(axis=1)
            ranges[place, i, 1] = np.abs(values).max(axis=1)
    return ranges


def _exact_at(values: Array, ranges: Array) -> Array:
    """Ranges widened by a factor below two, so that `values` of at least one 8-bit step are whole numbers of steps.

    The halves of a rotary pair then differ slightly; both still cover the range of the pair.
    """
    steps = np.floor(values / np.maximum(ranges / _MAX_CODE, np.float32(1e-30)))
    exact: Array = np.where(steps >= 1, values / np.maximum(steps, 1) * _MAX_CODE, ranges).astype(np.float32)
    return exact


def _opening(model: Model) -> list[int]:
    """Ids of a short conversation, rendered by the chat template: special tokens, and the beginning of prompts."""
    if not model.has_tokenizer:
        return []
    turns = [{"role": "user", "content": "Hello, what can you do?"}]
    turns += [{"role": "assistant", "content": "I can answer questions."}, {"role": "user", "content": "Thank you!"}]
    try:
        return model.tokenizer.encode(model.render(turns))[: model.config.max_positions]
    except TemplateError:
        return []


def built_in_text() -> str:
    """Prose, dialogue, numbers and code in a few hundred tokens."""
    return resources.files("ouro_edge.fitting").joinpath("calibration.txt").read_text(encoding="utf-8")


def _pair_reach(keys: Array) -> Array:
    """Largest length [KV, D] of each rotary pair (i, i + D/2) over keys [KV, T, D], the same for both halves."""
    first, second = np.split(keys, 2, axis=-1)
    reach = np.sqrt(np.square(first) + np.square(second)).max(axis=1)
    return np.concatenate([reach, reach], axis=-1)


def calibration_ids(tokenizer: Tokenizer | None, vocab_size: int, calibration: Calibration) -> list[int]:
    """Token ids for the measurement. RequestError when the text is too short, or without a tokenizer."""
    text, tokens = calibration.text, calibration.tokens
    if tokenizer is None:
        if text is not None:
            raise RequestError("this model has no tokenizer, so it is calibrated on random ids: leave the text out")
        ids = np.random.default_rng(0).integers(0, vocab_size, tokens).tolist()
    else:
        ids = tokenizer.encode_text(built_in_text() if text is None else text)[:tokens]
    if len(ids) < _MIN_TOKENS:
        raise RequestError(f"the calibration text has {len(ids)} tokens; expected some hundreds")
    return ids
