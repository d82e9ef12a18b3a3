"""Two generators, one above the other: token ids out of a sequence, then events with text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Set
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.errors import Cancelled, RequestError
from ouro_edge.runtime.events import Done, Event, StopReason, Timings, Token, Usage
from ouro_edge.runtime.exits.loop_budget import ExitTracker
from ouro_edge.runtime.make_token import make_token
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.sampler import Choice, Sampling, check_logits
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.speculation.decoder import SpeculativeDecoder
from ouro_edge.runtime.speculation.draft_policy import DraftPolicy
from ouro_edge.runtime.speculation.learned import draft_policy_for
from ouro_edge.runtime.text.tokenizer import TextStream, Tokenizer


class Decoder(Protocol):
    """Generates tokens, without text, after what a sequence holds; its last token must be fresh."""

    drafted: int
    accepted: int

    def tokens(self) -> Generator[Token, None, None]:
        """Tokens without end; stopping is the caller's job."""


def make_decoder(sequence: TokenSequence, request: Request) -> Decoder:
    """The decoder for a request: speculative where the request allows it."""
    if isinstance(request.speculate, DraftPolicy):
        return SpeculativeDecoder(sequence, request, request.speculate)
    if request.speculate:
        policy = draft_policy_for(sequence, forced=request.speculate is True)
        return SpeculativeDecoder(sequence, request, policy)
    return PlainDecoder(sequence, request)


class PlainDecoder:
    """One token after the other."""

    drafted = accepted = 0

    def __init__(self, sequence: TokenSequence, request: Request) -> None:
        self._sequence, self._request = sequence, request

    def tokens(self) -> Generator[Token, None, None]:
        """Generate after what the sequence holds; its last token must be fresh."""
        sequence, request = self._sequence, self._request
        sampling, exits, generation = request.sampler.start(), ExitTracker(request.exit), sequence.generation_id
        seen = set(sequence.tokens) if request.sampler.repetition_penalty != 1 else set()
        while True:
            states = sequence.run_until_exit(exits.next_rule(), request.cancel)
            exits.record(states.loop)
            logits = states.logits[0]
            if request.constraint is None:
                choice = sampling.choose(logits, seen)
            else:
                choice = _choose_allowed(sampling, logits, seen, request.constraint)
            yield make_token(states, sequence.config.loops, choice, request)
            if sequence.generation_id != generation:  # nothing may be appended to what another one has made of it
                raise RequestError("another generation has used this sequence meanwhile: give each its own")
            if seen:
                seen.add(choice.id)
            sequence.append([choice.id])


def _choose_allowed(sampling: Sampling, logits: Array, seen: Set[int], constraint: Constraint) -> Choice:
    """A token that the constraint allows; `logprob` is its log-probability among all tokens."""
    allowed = logits.copy()
    constraint.mask(allowed)
    if allowed.max() == -np.inf:
        raise RequestError("the constraint allows no token here, not even one that ends the answer")
    choice = sampling.choose(allowed, seen)
    constraint.accept(choice.id)
    return choice._replace(logprob=float(logits[choice.id]) - check_logits(logits)[1])


def generate_events(
    sequence: TokenSequence, tokenizer: Tokenizer | None, request: Request, cached: int
) -> Iterator[Event]:
    """Generate until a stop: one Token per id, then one Done.

    The sequence is left holding the prompt and every token but the last, computed as far as any token needed it.
    """
    began = time.perf_counter()
    first = began
    before, pending = replace(sequence.work), sequence.pending_loops
    decoder = make_decoder(sequence, request)
    stream = TextStream(tokenizer, after=() if request.new_text else request.ids) if tokenizer else None
    matcher = request.stop_strings.start()
    texts: list[str] = []
    depths: list[int] = []
    reason: StopReason = "length"
    try:
        with closing(decoder.tokens()) as tokens:
            for token in tokens:
                depths.append(token.depth)
                if len(depths) == 1:
                    first = time.perf_counter()
                text, stopped = "", token.id in request.stop_ids
                if stream and not stopped:
                    text, stopped = matcher.push(stream.push(token.id))
                stopped = stopped or (request.constraint is not None and request.constraint.done)
                ended = stopped or len(depths) == request.max_tokens
                if ended and stream and not matcher.stopped:
                    rest, stopped_late = matcher.push(stream.flush())
                    text += rest + matcher.flush()
                    stopped = stopped or stopped_late
                texts.append(text)
                yield replace(token, text=text)
                if ended:
                    reason = "stop" if stopped else "length"
                    break
    except Cancelled:
        reason = "cancelled"
    usage = Usage(
        prompt_tokens=len(request.ids),
        cached_tokens=cached,
        completion_tokens=len(depths),
        loops_run=sequence.work.rows - before.rows,
        loops_saved=sequence.pending_loops - pending,
        block_calls=sequence.work.calls - before.calls,
        mean_depth=sum(depths) / len(depths) if depths else 0.0,
        drafted_tokens=decoder.drafted,
        accepted_tokens=decoder.accepted,
    )
    now = time.perf_counter()
    yield Done(reason, "".join(texts), usage, Timings((first if depths else now) - began, now - began))
