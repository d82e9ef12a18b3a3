"""Two generators, one above the other: token ids out of a sequence, then events with text. Knows no files, no chat."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Set
from contextlib import closing
from dataclasses import replace

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.errors import Cancelled, RequestError
from ouro_edge.runtime.events import Done, Event, StopReason, Timings, Token, Usage
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.sampler import Sampling, check_logits
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.speculation.decoder import Speculation
from ouro_edge.runtime.speculation.draft_policy import Plan
from ouro_edge.runtime.speculation.step import Step, make_step
from ouro_edge.runtime.text.tokenizer import TextStream, Tokenizer


def generate_steps(sequence: TokenSequence, request: Request) -> Generator[Step, None, None]:
    """Generate ids after what the sequence holds; its last token must be fresh. Stops are the caller's affair."""
    if request.speculate and sequence.can_draft:
        if sequence.plan is None or sequence.plan.forced != (request.speculate is True):
            sequence.plan = Plan(sequence.config.loops, forced=request.speculate is True)
        return Speculation(sequence, request, sequence.plan).steps()
    return _plain_steps(sequence, request)


def _plain_steps(sequence: TokenSequence, request: Request) -> Generator[Step, None, None]:
    """One token after the other."""
    sampling, policy, turn = request.sampler.start(), request.exit.start(), sequence.generation_id
    seen = set(sequence.tokens) if request.sampler.repetition_penalty != 1 else set()
    while True:
        if sequence.generation_id != turn:
            raise RequestError("another generation has used this sequence meanwhile: give each its own")
        thought = sequence.think(policy, request.cancel)
        policy.spent(thought.depth)
        if request.constraint is None:
            token, logprob = sampling.pick(thought.logits, seen)
        else:
            token, logprob = _pick_allowed(sampling, thought.logits, seen, request.constraint)
        yield make_step(thought.evidence, sequence.config.loops, token, logprob, request)
        if seen:
            seen.add(token)
        sequence.append([token])


def _pick_allowed(sampling: Sampling, logits: Array, seen: Set[int], constraint: Constraint) -> tuple[int, float]:
    """A token that the constraint allows, with its log-probability among all tokens."""
    allowed = logits.copy()
    constraint.mask(allowed)
    if allowed.max() == -np.inf:
        raise RequestError("the constraint allows no token here, not even one that ends the answer")
    token, _ = sampling.pick(allowed, seen)
    constraint.accept(token)
    return token, float(logits[token]) - check_logits(logits)[1]


def generate_events(
    sequence: TokenSequence, tokenizer: Tokenizer | None, request: Request, cached: int
) -> Iterator[Event]:
    """Generate until a stop: one Token per id, then one Done.

    The sequence is left holding the prompt and every token but the last, computed as far as anything needed it.
    """
    began = time.perf_counter()
    first = began
    before = replace(sequence.work)
    steps = generate_steps(sequence, request)
    stream = TextStream(tokenizer) if tokenizer else None
    matcher = request.stop_strings.start()
    texts: list[str] = []
    depths: list[int] = []
    reason: StopReason = "length"
    try:
        with closing(steps):
            for step in steps:
                depths.append(step.depth)
                if len(depths) == 1:
                    first = time.perf_counter()
                text, stopped = "", step.id in request.stop_ids
                if stream and not stopped:
                    text, stopped = matcher.push(stream.push(step.id))
                stopped = stopped or (request.constraint is not None and request.constraint.done)
                ended = stopped or len(depths) == request.max_tokens
                if ended and stream and not matcher.stopped:
                    rest, stopped_late = matcher.push(stream.flush())
                    text += rest + matcher.flush()
                    stopped = stopped or stopped_late
                texts.append(text)
                yield Token(step.id, text, step.logprob, step.depth, step.exit_probs, step.top_logprobs, step.lens)
                if ended:
                    reason = "stop" if stopped else "length"
                    break
    except Cancelled:
        reason = "cancelled"
    work = sequence.work
    rows = work.rows - before.rows
    usage = Usage(
        prompt_tokens=len(request.ids),
        cached_tokens=cached,
        completion_tokens=len(depths),
        loops_run=rows,
        loops_full=rows + sequence.pending_loops,
        block_calls=work.calls - before.calls,
        mean_depth=sum(depths) / len(depths) if depths else 0.0,
        drafted_tokens=work.drafted - before.drafted,
        accepted_tokens=work.accepted - before.accepted,
    )
    now = time.perf_counter()
    yield Done(reason, "".join(texts), usage, Timings((first if depths else now) - began, now - began))
