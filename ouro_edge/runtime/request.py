"""The parameters of a generation, and the checks of every request before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.checks import check_ids, check_kind, check_whole
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.prefix import check_prefix
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from ouro_edge.runtime.speculation.draft_policy import DraftPolicy

    Speculate = bool | DraftPolicy | Literal["auto"]


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `Model.generate`."""

    max_tokens: int | None
    exit: ExitPolicy | None
    sampler: Sampler | None
    stop: str | Sequence[str]
    stop_ids: Iterable[int] | None
    top_logprobs: int
    logit_lens: int
    constraint: Constraint | None
    cancel: Cancel | None
    sequence: TokenSequence | None
    speculate: Speculate
    new_text: bool
    prefix: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request. Only the constraint has running state."""

    ids: tuple[int, ...]
    max_tokens: int
    exit: ExitPolicy
    sampler: Sampler
    stop_ids: frozenset[int]
    stop_strings: StopStrings
    cancel: Cancel | None
    top_logprobs: int
    logit_lens: int
    constraint: Constraint | None
    speculate: Speculate
    new_text: bool = False  # the answer is a text by itself, not the prompt's continuation
    prefix: int = 0  # tokens at the start of the prompt that see each other in both directions


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
    logit_lens: int,
    constraint: Constraint | None,
    cancel: Cancel | None,
    speculate: Speculate = False,
    new_text: bool = False,
    prefix: int = 0,
) -> Request:
    """Check all arguments of a generation except `ids`, which the caller has checked. RequestError or a subclass."""
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
        logit_lens=check_count("logit_lens", logit_lens, size),
        constraint=constraint,
        speculate=speculate,
        new_text=new_text,
        prefix=check_prefix(config, prefix, len(ids)),
    )


def token_budget(prompt: int, max_tokens: int | None, context: int) -> int:
    """The number of tokens that may be generated; the last one does not need a position in the context.

    ContextOverflowError when the prompt, or the prompt with a given `max_tokens`, does not fit.
    """
    room = context - prompt + 1
    if not prompt:
        raise RequestError("the prompt is empty: give at least one token")
    if room < 1 or prompt > context:
        raise ContextOverflowError(f"the prompt has {prompt} tokens, this model's context is {context}: shorten it")
    if max_tokens is None:
        return room
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)) or max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens!r}; expected a whole number of at least 1")
    if max_tokens > room:
        raise ContextOverflowError(f"{prompt} tokens of prompt and {max_tokens} to generate do not fit this model's "
                                   f"context of {context}: ask for at most {room}")  # fmt: skip
    return int(max_tokens)


def check_count(name: str, value: Any, vocab_size: int) -> int:
    """A number of candidates. RequestError unless it is a whole number up to the size of the vocabulary."""
    return check_whole(name, value, 0, vocab_size, ", the size of the vocabulary")
