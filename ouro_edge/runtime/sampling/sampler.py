"""Sampling: from logits to the next token id. Must not import models or text processing.

`Sampler` is the specification (frozen, may be shared), `Sampling` the running state (the random generator of one
answer). Order: bias, repetition penalty, temperature, top-k, top-p, min-p. This is Hugging Face's order, so that the
settings of a generation_config.json keep their meaning; llama.cpp filters first and applies the temperature last.
Each filter applies to the renormalised result of the previous one; the most probable token is always kept, so the set
is never empty. Ties go to the lower id, so that an answer does not depend on how NumPy partitions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import check_number
from ouro_edge.system.numbers import is_number, is_whole

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Noise = NDArray[np.float64]

_MAX_FLOAT = sys.float_info.max
_INITIAL_NUCLEUS_TOKENS = 256  # most nuclei are smaller; a larger one needs another partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How to choose the next token; greedy by default. RequestError names an option that is out of range."""

    temperature: float = 0.0  # 0 chooses the most probable token
    top_k: int = 0  # keep the k most probable; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of the most probable with at least this mass; 1 keeps all
    min_p: float = 0.0  # keep tokens with at least this share of the highest probability; 0 keeps all
    repetition_penalty: float = 1.0  # divides positive logits of seen tokens, multiplies negative ones
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # added to logits; -inf forbids a token
    seed: int | None = None  # the same seed and logits give the same answer; None uses a new seed

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0.0, _MAX_FLOAT, "a finite number of at least 0")
        check_number("top_p", self.top_p, 0.0, 1.0, "0 to 1")
        check_number("min_p", self.min_p, 0.0, 1.0, "0 to 1")
        check_number("repetition_penalty", self.repetition_penalty, 0.0, _MAX_FLOAT, "a finite number of at least 0")
        if self.repetition_penalty == 0:
            raise RequestError("repetition_penalty is 0; expected a number above 0, where 1 has no effect")
        if not is_whole(self.top_k) or self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k!r}; expected a whole number, 0 for no limit")
        if self.seed is not None and (not is_whole(self.seed) or self.seed < 0):
            raise RequestError(f"seed is {self.seed!r}; expected a whole number of at least 0, or None")
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias is {type(self.logit_bias).__name__}; expected a mapping of token id to number"
            )
        for token, bias in self.logit_bias.items():
            if not is_whole(token) or token < 0:
                raise RequestError(f"logit_bias has the key {token!r}; expected a token id")
            if not is_number(bias) or bias == math.inf:
                raise RequestError(f"logit_bias of token {token} is {bias!r}; expected a number or -inf")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # a copy, since the caller may change its mapping

    def for_sample(self, number: int) -> Sampler:
        """The sampler of one of several samples: its seed plus `number`, so that samples differ and are repeatable."""
        return self if self.seed is None or not number else replace(self, seed=self.seed + number)

    def start(self) -> Sampling:
        """New running state for one answer."""
        return Sampling(self)


class Choice(NamedTuple):
    """A chosen token with its log-probability under the model, and under the distribution that it was drawn from."""

    id: int
    logprob: float
    sampling_logprob: float


class Sampling:
    """A sampler with the random generator of one answer; not thread-safe."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.generator = np.random.default_rng(sampler.seed)

    def draw(self, size: int) -> Noise | None:
        """The noise [V] that decides one token; None for a greedy sampler."""
        return self.generator.standard_exponential(size) if self.sampler.temperature > 0 else None

    def pick(
        self, logits: Logits, seen: Sequence[int] | Set[int] = (), noise: Noise | None = None
    ) -> tuple[int, float]:
        """The first two parts of `choose`: the next token id, and its log-probability under the model."""
        return self.choose(logits, seen, noise)[:2]

    def choose(self, logits: Logits, seen: Sequence[int] | Set[int] = (), noise: Noise | None = None) -> Choice:
        """The next token.

        logits: [V]. `seen` contains the ids to which the repetition penalty applies, preferably a set; unused when the
        penalty is 1. `noise` comes from `draw`, which is called if it is omitted. The chosen token wins a race of
        exponential clocks with the probabilities as rates (the Gumbel-max rule), so the same noise usually selects the
        same token from two similar distributions p and q: with probability at least (1 - t) / (1 + t), where t is
        their total variation distance (arXiv 2408.07978).
        The log-probability is that of the plain softmax of `logits`, without bias, penalty, temperature and filters;
        `sampling_logprob` is that after them, 0 for a greedy sampler. RequestError when a logit is NaN or +inf, when
        all are -inf, or when an id is outside the vocabulary.
        """
        top, norm = check_logits(logits)
        sampler = self.sampler
        if sampler.temperature == 0 and sampler.repetition_penalty == 1 and not sampler.logit_bias:
            return Choice(top, float(logits[top]) - norm, 0.0)
        ids, probabilities = self.survivors(logits, seen)
        if noise is None:
            noise = self.draw(len(logits))
        place = 0
        if noise is not None and len(ids) > 1:
            # Rate divided by time, so that a probability of 0 never wins.
            place = int(np.argmax(probabilities / np.maximum(noise[ids], np.finfo(np.float64).tiny)))
        token = int(ids[place])
        return Choice(token, float(logits[token]) - norm, math.log(probabilities[place]))

    def survivors(self, logits: Logits, seen: Sequence[int] | Set[int]) -> tuple[Ids, Probabilities]:
        """Ids [S] that remain after the filters, and their probabilities [S], which sum to 1; does not draw."""
        sampler = self.sampler
        scores = _adjusted(logits, seen, sampler)  # [V]
        if sampler.temperature == 0:
            return np.array([np.argmax(scores)]), np.ones(1)
        with np.errstate(over="ignore"):  # a tiny temperature drives all but the best to -inf, as intended
            weights = np.exp((scores - scores.max()) / sampler.temperature)  # [V], exactly 1 for the best
        ids = np.arange(len(weights))
        if 0 < sampler.top_k < len(weights):
            ids = largest(weights, sampler.top_k)
        if sampler.top_p < 1:
            ids = ids[_nucleus(weights[ids], sampler.top_p)]
        if sampler.min_p > 0:
            ids = ids[weights[ids] >= sampler.min_p]
        kept = weights[ids]  # [S]
        return ids, kept / kept.sum()


def check_logits(logits: Logits) -> tuple[int, float]:
    """The id of the highest logit (the lowest such id) and the logarithm of the sum of exponentials."""
    if logits.ndim != 1 or not len(logits):
        raise RequestError(f"logits have shape {list(logits.shape)}; expected one row [V]")
    top = int(np.argmax(logits))  # NaN compares as the highest, so this value covers all
    highest = float(logits[top])
    if not math.isfinite(highest):
        raise RequestError(f"the highest logit is {highest}; the model's output is damaged and no token can be chosen")
    with np.errstate(over="ignore"):  # a difference beyond float32 becomes -inf, with weight 0
        weights = np.exp(logits - logits[top])  # [V]
    return top, highest + math.log(float(weights.sum(dtype=np.float64)))


def _adjusted(logits: Logits, seen: Sequence[int] | Set[int], sampler: Sampler) -> Probabilities:
    """Logits [V] after bias and penalty, in float64."""
    scores = logits.astype(np.float64)
    if sampler.logit_bias:
        tokens = _in_vocabulary(sampler.logit_bias, len(scores), "logit_bias")
        scores[tokens] += np.fromiter(sampler.logit_bias.values(), np.float64, len(tokens))
    if sampler.repetition_penalty != 1 and seen:
        tokens = _in_vocabulary(seen if isinstance(seen, Set) else set(seen), len(scores), "the ids seen")
        values = scores[tokens]
        with np.errstate(over="ignore"):  # reported below
            penalty = sampler.repetition_penalty
            scores[tokens] = np.where(values > 0, values / penalty, values * penalty)
    if not math.isfinite(scores.max()):
        raise RequestError(
            f"the highest logit is {scores.max()} after logit_bias and repetition_penalty; use smaller values"
        )
    return scores


def _in_vocabulary(tokens: Mapping[int, float] | Set[int], size: int, name: str) -> Ids:
    ids = np.fromiter(tokens, np.int64, len(tokens))
    if ids.min() < 0 or ids.max() >= size:
        wrong = int(ids[(ids < 0) | (ids >= size)][0])
        raise RequestError(f"{name} has token {wrong}; the vocabulary ends at {size - 1}")
    return ids


def largest(values: Probabilities | Logits, count: int) -> Ids:
    """Indices [count] of the largest values, largest first, the lower index first among equals."""
    size = len(values)
    if count >= size:
        chosen = np.arange(size)
    else:
        border = np.partition(values, size - count)[size - count]
        above = np.flatnonzero(values > border)
        equal = np.flatnonzero(values == border)[: count - len(above)]
        chosen = np.sort(np.concatenate([above, equal]))
    return chosen[np.argsort(-values[chosen], kind="stable")]


def _nucleus(values: Probabilities, share: float) -> Ids:
    """Indices of the smallest set of largest values with at least this share of the sum; at least one."""
    mass_needed = share * values.sum()
    count = _INITIAL_NUCLEUS_TOKENS
    while True:
        order = largest(values, count)
        mass = np.cumsum(values[order])
        if mass[-1] >= mass_needed or count >= len(values):
            return order[: int(np.searchsorted(mass, mass_needed)) + 1]
        count *= 8
