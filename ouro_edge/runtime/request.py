"""What may be asked of a generation, and the checks that every request passes before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.checks import check_ids, check_kind, check_whole
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.text.stop_strings import StopStrings

Speculate = bool | Literal["auto"]
# Feed-forward weights of the block. Below, a loop takes less time than the Python around it, which drafting adds to.
_WORTH_DRAFTING = 1 << 24


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `Model.generate`, for those that pass them on."""

    max_tokens: int | None
    exit: ExitPolicy | None
    sampler: Sampler | None
    stop: str | Sequence[str]
    stop_ids: Iterable[int] | None
    top_logprobs: int
    lens: int
    constraint: Constraint | None
    cancel: Cancel | None
    sequence: TokenSequence | None
    speculate: Speculate


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate: everything checked, nothing running but the constraint."""

    ids: tuple[int, ...]
    max_tokens: int
    exit: ExitPolicy
    sampler: Sampler
    stop_ids: frozenset[int]
    stop_strings: StopStrings
    cancel: Cancel | None
    top_logprobs: int
    lens: int
    constraint: Constraint | None
    speculate: Speculate


def make_request(
    config: ModelConfig,
    ids: tuple[int, ...],
    *,
    max_tokens: int | None,
    exit: ExitPolicy,
    sampler: Sampler,
    stop: str | Sequence[str],
    stop_ids: Iterable[int],
    top_logprobs: int,
    lens: int,
    constraint: Constraint | None,
    cancel: Cancel | None,
    speculate: Speculate = False,
    shares_kv: bool = False,
) -> Request:
    """Check every argument of a generation but the prompt `ids`, checked before. RequestError and its kinds."""
    size = config.vocab_size
    for name, value, kind in (
        ("exit", exit, ExitPolicy),
        ("sampler", sampler, Sampler),
        ("constraint", constraint, Constraint),
        ("cancel", cancel, Cancel),
    ):
        check_kind(name, value, kind, optional=True)
    exit.limit(config)
    return Request(
        ids=ids,
        max_tokens=token_budget(len(ids), max_tokens, config.max_positions),
        exit=exit,
        sampler=sampler,
        stop_ids=frozenset(check_ids(stop_ids, size, "stop_ids")),
        stop_strings=StopStrings(stop),
        cancel=cancel,
        top_logprobs=check_count("top_logprobs", top_logprobs, size),
        lens=check_count("lens", lens, size),
        constraint=constraint,
        speculate=check_speculate(speculate, config, exit, constraint, shares_kv),
    )


def check_speculate(
    speculate: Speculate, config: ModelConfig, exit: ExitPolicy, constraint: Constraint | None, shares_kv: bool
) -> Speculate:
    """Whether to speculate: auto becomes False where nothing can be drafted. RequestError when True is impossible."""
    if not isinstance(speculate, bool) and not (isinstance(speculate, str) and speculate == "auto"):
        raise RequestError(f"speculate is {speculate!r}; wanted True, False or 'auto'")
    if not speculate:
        return False
    reasons = (
        (config.loops == 1, "the model has one loop"),
        (shares_kv, "its loops share one KV cache"),
        (constraint is not None, "a constraint is given"),
        (exit.start() is not exit, "the exit rule remembers earlier tokens"),
    )
    for holds, reason in reasons:
        if holds and speculate is True:
            raise RequestError(f"speculation is not possible because {reason}: leave it on auto")
    if any(holds for holds, _ in reasons) or exit.limit(config) == 1:
        return False
    small = 3 * config.num_layers * config.hidden_size * config.intermediate_size < _WORTH_DRAFTING
    return speculate is True or (False if small else "auto")


def token_budget(prompt: int, max_tokens: int | None, context: int) -> int:
    """How many tokens may be generated; the last one needs no position of its own.

    ContextOverflowError when the prompt, or the prompt and a given `max_tokens`, do not fit.
    """
    room = context - prompt + 1
    if not prompt:
        raise RequestError("the prompt is empty: give at least one token")
    if room < 1 or prompt > context:
        raise ContextOverflowError(f"the prompt has {prompt} tokens, this model's context is {context}: shorten it")
    if max_tokens is None:
        return room
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)) or max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens!r}; wanted a whole number of at least 1")
    if max_tokens > room:
        raise ContextOverflowError(f"{prompt} tokens of prompt and {max_tokens} to generate do not fit this model's "
                                   f"context of {context}: ask for at most {room}")  # fmt: skip
    return int(max_tokens)


def check_count(name: str, value: Any, vocab_size: int) -> int:
    """A number of candidates. RequestError unless it is a whole number that the vocabulary has."""
    return check_whole(name, value, 0, vocab_size, ", the size of the vocabulary")
