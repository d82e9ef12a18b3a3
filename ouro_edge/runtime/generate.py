"""Two generators, one above the other: token ids out of a sequence, then events with text. Knows no files, no chat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ouro_edge.errors import Cancelled, ContextOverflowError, RequestError
from ouro_edge.reference import exit_probabilities
from ouro_edge.runtime.cancel import Cancel
from ouro_edge.runtime.events import Done, Event, StopReason, Timings, Token, Usage
from ouro_edge.runtime.exits import ExitPolicy
from ouro_edge.runtime.sampler import Sampler
from ouro_edge.runtime.sequence import TokenSequence
from ouro_edge.runtime.stopping import StopStrings
from ouro_edge.runtime.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate: everything checked, nothing running."""

    ids: tuple[int, ...]
    max_tokens: int
    exit: ExitPolicy
    sampler: Sampler
    stop_ids: frozenset[int]
    stop_strings: StopStrings
    cancel: Cancel | None


@dataclass(frozen=True, slots=True)
class Step:
    """One generated id and how it came about."""

    id: int
    logprob: float
    depth: int
    exit_probs: tuple[float, ...]


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


def generate_steps(sequence: TokenSequence, request: Request) -> Iterator[Step]:
    """Generate ids after what the sequence holds; its last token must be fresh. Stops are the caller's affair."""
    sampling, policy, turn = request.sampler.start(), request.exit.start(), sequence.turn
    seen = set(sequence.tokens) if request.sampler.repetition_penalty != 1 else set()
    while True:
        if sequence.turn != turn:
            raise RequestError("another generation has used this sequence meanwhile: give each its own")
        thought = sequence.think(policy, request.cancel)
        policy.spent(thought.depth)
        token, logprob = sampling.pick(thought.logits, seen)
        probabilities = exit_probabilities(thought.evidence.gate_logits, sequence.config.loops)[0, : thought.depth]
        yield Step(token, logprob, thought.depth, tuple(probabilities.tolist()))
        if seen:
            seen.add(token)
        sequence.feed([token])


def generate_events(
    sequence: TokenSequence, tokenizer: Tokenizer | None, request: Request, cached: int
) -> Iterator[Event]:
    """Generate until a stop: one Token per id, then one Done.

    The sequence is left holding the prompt and every token but the last, computed as far as anything needed it.
    """
    began = time.perf_counter()
    first = began
    before = sequence.work.rows, sequence.work.calls
    stream = TextStream(tokenizer) if tokenizer else None
    matcher = request.stop_strings.start()
    texts: list[str] = []
    depths: list[int] = []
    reason: StopReason = "length"
    try:
        for step in generate_steps(sequence, request):
            depths.append(step.depth)
            if len(depths) == 1:
                first = time.perf_counter()
            text, stopped = "", step.id in request.stop_ids
            if stream and not stopped:
                text, stopped = matcher.push(stream.push(step.id))
            ended = stopped or len(depths) == request.max_tokens
            if ended and stream and not matcher.stopped:
                rest, stopped_late = matcher.push(stream.flush())
                text += rest + matcher.flush()
                stopped = stopped or stopped_late
            texts.append(text)
            yield Token(step.id, text, step.logprob, step.depth, step.exit_probs)
            if ended:
                reason = "stop" if stopped else "length"
                break
    except Cancelled:
        reason = "cancelled"
    rows, calls = sequence.work.rows - before[0], sequence.work.calls - before[1]
    usage = Usage(
        prompt_tokens=len(request.ids),
        cached_tokens=cached,
        completion_tokens=len(depths),
        loops_run=rows,
        loops_full=rows + sequence.unasked_loops,
        block_calls=calls,
        mean_depth=sum(depths) / len(depths) if depths else 0.0,
    )
    now = time.perf_counter()
    yield Done(reason, "".join(texts), usage, Timings((first if depths else now) - began, now - began))
