"""The events of a generation: plain values without behaviour."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

StopReason = Literal["stop", "length", "cancelled"]
Candidate = tuple[int, float]  # a token id, and its log-probability (in a logit lens: its probability)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` is the text that can be displayed now; it is empty while a character is incomplete.

    The token that ends an answer is reported like any other token; its own text is never part of `text`.
    """

    id: int
    text: str
    logprob: float  # under the model's own softmax, before temperature and filters
    depth: int  # loops that this token's state went through, counted from 1
    exit_probs: tuple[float, ...]  # the gate's probability of stopping at loop 1..depth; NaN without a gate
    top_logprobs: tuple[Candidate, ...] = ()  # the most probable ids with their `logprob`, best first, if requested
    logit_lens: tuple[tuple[Candidate, ...], ...] = ()  # for loop 1..depth: most probable ids, with probabilities
    sampling_logprob: float = 0.0  # under the distribution that it was drawn from: after constraint, bias, penalty,
    # temperature and filters; 0 for a greedy sampler

    @property
    def lens(self) -> tuple[tuple[Candidate, ...], ...]:
        """Deprecated name of `logit_lens`."""
        warnings.warn("Token.lens is now Token.logit_lens", DeprecationWarning, stacklevel=2)
        return self.logit_lens


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one request. A loop is one pass of one position through the block."""

    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose state was reused from an earlier turn
    completion_tokens: int
    loops_run: int
    loops_saved: int  # new positions times R, minus loops run; negative if pending loops of earlier requests ran
    block_calls: int  # each reads the block's weights once, which is most of the time of decoding
    mean_depth: float  # of the generated tokens
    drafted_tokens: int = 0  # proposed by a shallow loop, and extended by another position
    accepted_tokens: int = 0  # drafted tokens that the deeper loops confirmed

    @property
    def loops_full(self) -> int:
        """Loops that the same request would have run at full depth."""
        return self.loops_run + self.loops_saved


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one request."""

    first_token: float  # from the call to the first token
    total: float

    def decode_rate(self, completion_tokens: int) -> float:
        """Tokens per second after the first token; 0.0 with fewer than two tokens."""
        seconds = self.total - self.first_token
        return (completion_tokens - 1) / seconds if completion_tokens > 1 and seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation: reason, complete text, counts and times."""

    reason: StopReason
    text: str
    usage: Usage
    timings: Timings


Event = Token | Done
