"""Whether to draft, from which loop and how far: estimates learnt while generating. Affects time, never tokens.

A round drafts up to `rows` positions with the head on loop `depth`'s state, then runs the deeper loops over all of them
in one call each. It pays when drafts are often right and a call of many rows costs little more than one of one row.
Both are measured: call latencies by a clock, acceptance by comparing drafts with the tokens that came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_MIN_GAIN = 1.05  # below this, bookkeeping and the wait for the first token of a round are not worth it
_MAX_DRAFT_ROWS = 8
_MIN_CONFIDENCE = 0.5  # drafts that the shallow loop gives a lower probability are not extended
_TOKENS_PER_PROBE = 8  # tokens between looks at what every loop would have drafted
_EARLY_PROBES = 2  # tokens at the start that are all probed, before anything is drafted
_ROUNDS_PER_DECISION = 4
_NEGLIGIBLE_RATE = 0.01
_HEAD_TO_BLOCK_RATIO = 0.15  # latency of a head call in block calls, before it is measured: the 1.4B's
_LATENCY_SLOPE = 0.2  # cost of a further row in one-row calls, before it is measured: x1.17, 1.56, 2.4 at 2, 4, 8 rows
_RATE_WINDOW = 32.0  # events that a running rate remembers


@dataclass(slots=True)
class RunningRate:
    """The share of events that happened, over the last few dozen; it starts from a guess of little weight."""

    value: float
    _weight: float = 2.0

    def add(self, happened: bool) -> None:
        """Count one event."""
        self._weight = min(self._weight + 1.0, _RATE_WINDOW)
        self.value += (happened - self.value) / self._weight


@dataclass(slots=True)
class LatencyModel:
    """Seconds of a call over n rows, one * (1 + slope * (n - 1)), fitted to the calls that were made."""

    one: float | None = None
    slope: float = _LATENCY_SLOPE

    def add(self, rows: int, seconds: float) -> None:
        """Fit to one call; larger calls are bound by arithmetic, which this model does not cover, and are ignored."""
        if rows > 2 * _MAX_DRAFT_ROWS or seconds <= 0:
            return
        if self.one is None:
            self.one = seconds / (1 + self.slope * (rows - 1))
        seconds = min(max(seconds, self.one / 4), 4 * self.predict(rows))  # other load on the machine is not a trend
        if rows == 1:
            self.one += 0.1 * (seconds - self.one)
        else:
            self.slope += 0.1 * (max(0.0, (seconds / self.one - 1) / (rows - 1)) - self.slope)

    def predict(self, rows: int) -> float:
        """Seconds of a call; 1.0 for one row before anything was measured."""
        return (1.0 if self.one is None else self.one) * (1 + self.slope * (rows - 1))


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How to draft in one round."""

    depth: int  # the loop whose state drafts
    rows: int  # positions at most; 1 drafts nothing


@dataclass(slots=True)
class DraftQuality:
    """Acceptance of one loop's drafts, for positions that have not stopped by then."""

    confident: RunningRate = field(default_factory=lambda: RunningRate(0.7))
    accepted: RunningRate = field(default_factory=lambda: RunningRate(0.8))  # of the confident ones


class DraftPolicy:
    """Running estimates and the decisions that follow. For one sequence at a time; not safe for several threads."""

    def __init__(self, loops: int, forced: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.loops = loops
        self.forced = forced  # draft even where it does not seem to pay
        self.block, self.head = LatencyModel(), LatencyModel()
        self._alive = [RunningRate(1.0) for _ in range(loops)]  # [r]: of all positions, those that need loop r + 1
        self._drafts = [DraftQuality() for _ in range(loops - 1)]  # [d - 1]
        self._tokens = self._rounds = 0
        self._plan = DraftPlan(loops, 1)
        self._planned_for = 0

    def choose(self, limit: int) -> DraftPlan:
        """How to draft in the next round, when the exit rule goes to loop `limit` at most."""
        if limit != self._planned_for or self._rounds % _ROUNDS_PER_DECISION == 0:
            self._plan, self._planned_for = self._best(limit), limit
        self._rounds += 1
        return self._plan

    def is_confident(self, probability: float) -> bool:
        """Whether to extend a draft whose loop gives its first choice this probability."""
        return probability >= _MIN_CONFIDENCE

    def needs_probe(self) -> bool:
        """Whether the next token should show what every loop would have drafted."""
        return self._tokens < _EARLY_PROBES or self._tokens % _TOKENS_PER_PROBE == 0

    def record_draft(self, depth: int, confident: bool, accepted: bool) -> None:
        """Count a draft that loop `depth` made, or would have made, for a position that went deeper."""
        quality = self._drafts[depth - 1]
        quality.confident.add(confident)
        if confident:
            quality.accepted.add(accepted)

    def record_token(self, depth: int) -> None:
        """Count a generated token and its depth."""
        self._tokens += 1
        for loop, rate in enumerate(self._alive, start=1):
            rate.add(depth >= loop)

    def gain(self, plan: DraftPlan, limit: int) -> float:
        """Expected tokens per second with these drafts, relative to none, counted from where a draft can be made."""
        alive = [rate.value for rate in self._alive[:limit]]
        quality = self._drafts[plan.depth - 1]
        undecided = alive[plan.depth]  # the share of positions that have not stopped where drafts are made
        if undecided < _NEGLIGIBLE_RATE:
            return 1.0
        head = _HEAD_TO_BLOCK_RATIO * self.block.predict(1) if self.head.one is None else self.head.predict(1)
        # A call over n rows costs a fixed part and a part per row. Rows are the same with drafts or without: a position
        # that stopped early goes through the deeper loops with the next one that needs them.
        row = min(self.block.predict(1), self.block.predict(2) - self.block.predict(1))
        call = self.block.predict(1) - row
        position = row * sum(rate > _NEGLIGIBLE_RATE for rate in alive)
        deep = [rate / undecided for rate in alive[plan.depth :]]  # calls of an undecided position
        shallow = call * sum(alive[: plan.depth]) + head
        extended, right = (1 - undecided * (1 - rate.value) for rate in (quality.confident, quality.accepted))
        reached = [1.0] + [quality.confident.value * extended**i for i in range(plan.rows - 1)]
        rights = [1.0] + [quality.accepted.value * right**i for i in range(plan.rows - 1)]
        cost = (call * plan.depth + head) + (shallow + position) * sum(reached[1:]) + position
        for n in range(1, plan.rows + 1):
            chance = reached[n - 1] - (reached[n] if n < plan.rows else 0.0)  # that the round has n positions
            verified = 1 + (n - 1) * undecided
            calls = sum(1 - (1 - min(1.0, rate)) ** verified for rate in deep)
            # The last position of a full round drafts nothing.
            ratio = self.head.predict(max(1, round(verified))) / self.head.predict(1)
            heads = head * ratio - (head if n == plan.rows else 0.0)
            cost += chance * (call * calls + heads)
        further = sum(a * b for a, b in zip(reached[1:], rights[1:], strict=True))  # tokens after the first
        plain = (call * (plan.depth + sum(deep)) + head + position) + (call * sum(alive) + head + position) * further
        return plain / cost

    def _best(self, limit: int) -> DraftPlan:
        plans: Sequence[DraftPlan] = [
            DraftPlan(depth, rows) for depth in range(1, limit) for rows in range(2, _MAX_DRAFT_ROWS + 1)
        ]
        if self._tokens < _EARLY_PROBES and not self.forced:
            return DraftPlan(limit, 1)
        best = max(plans, key=lambda plan: self.gain(plan, limit), default=DraftPlan(limit, 1))
        if best.rows == 1 or self.forced or self.gain(best, limit) >= _MIN_GAIN:
            return best
        return DraftPlan(limit, 1)
