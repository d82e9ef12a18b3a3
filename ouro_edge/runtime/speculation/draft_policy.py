"""Whether to speculate, from which loop and how far: estimates learnt while generating. Decides time, never tokens.

A round drafts up to `rows` positions with the head on loop `depth`'s state, then runs the deeper loops over all of them
in one call each. It pays when drafts are often right and a call of many rows costs little more than one of one row.
Both are measured: what calls take by a clock, what drafts are worth by comparing them with the tokens that came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_LEAST_GAIN = 1.05  # below this the bookkeeping and the waiting for the first token of a round are not worth it
_MOST_ROWS = 8
_BOLD = 0.5  # a draft that the shallow loop gives less probability is not gone on from
_PROBE_EVERY = 8  # tokens between looks at what every loop would have drafted
_EARLY_PROBES = 2  # tokens at the start that are all looked at, before anything is drafted
_REVISE_EVERY = 4  # rounds that a decision holds
_RARE = 0.01  # a share of positions that does not count
_HEAD_SHARE = 0.15  # a head call in block calls, before it is measured: the 1.4B's
_SLOPE = 0.2  # what a further row costs, in calls of one row, before it is measured: x1.17, 1.56, 2.4 at 2, 4, 8 rows


@dataclass(slots=True)
class Share:
    """A share of events that follows the last few dozen; it starts from a guess that is soon outvoted."""

    value: float
    _weight: float = 2.0

    def add(self, hit: bool) -> None:
        """Take one event in."""
        self._weight = min(self._weight + 1.0, 32.0)
        self.value += (hit - self.value) / self._weight


@dataclass(slots=True)
class Cost:
    """Seconds of a call over n rows, one * (1 + slope * (n - 1)), fitted to the calls that were made."""

    one: float | None = None
    slope: float = _SLOPE

    def add(self, rows: int, seconds: float) -> None:
        """Take one call in; beyond a few dozen rows it is compute that costs, which is another law."""
        if rows > 2 * _MOST_ROWS or seconds <= 0:
            return
        if self.one is None:
            self.one = seconds / (1 + self.slope * (rows - 1))
        seconds = min(max(seconds, self.one / 4), 4 * self.of(rows))  # a neighbour on the machine is no trend
        if rows == 1:
            self.one += 0.1 * (seconds - self.one)
        else:
            self.slope += 0.1 * (max(0.0, (seconds / self.one - 1) / (rows - 1)) - self.slope)

    def of(self, rows: int) -> float:
        """Seconds of a call; 1.0 for one row as long as nothing was measured."""
        return (1.0 if self.one is None else self.one) * (1 + self.slope * (rows - 1))


@dataclass(frozen=True, slots=True)
class Draft:
    """How to speculate in a round."""

    depth: int  # the loop whose state drafts
    rows: int  # positions at most; 1 drafts nothing


@dataclass(slots=True)
class DraftQuality:
    """What drafts of one loop are worth, of positions that have not stopped by then."""

    bold: Share = field(default_factory=lambda: Share(0.7))  # to be gone on from
    right: Share = field(default_factory=lambda: Share(0.8))  # of the bold ones


class Plan:
    """Running estimates of one sequence and the decisions that follow; not to be shared between threads."""

    def __init__(self, loops: int, forced: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.forced = forced  # draft even where it does not seem to pay
        self.block, self.head = Cost(), Cost()
        self._alive = [Share(1.0) for _ in range(loops)]  # [r]: of all positions, those that loop r + 1 is run for
        self._drafts = [DraftQuality() for _ in range(loops - 1)]  # [d - 1]
        self._tokens = self._rounds = 0
        self._choice = Draft(loops, 1)
        self._chosen_for = 0

    def choose(self, limit: int) -> Draft:
        """How to speculate in the next round, when the policy goes to loop `limit` at most."""
        if limit != self._chosen_for or self._rounds % _REVISE_EVERY == 0:
            self._choice, self._chosen_for = self._best(limit), limit
        self._rounds += 1
        return self._choice

    def is_bold(self, probability: float) -> bool:
        """Whether to go on from a draft of a loop that gives its first choice this probability."""
        return probability >= _BOLD

    def wants_probe(self) -> bool:
        """Whether the next token should show what every loop would have drafted."""
        return self._tokens < _EARLY_PROBES or self._tokens % _PROBE_EVERY == 0

    def saw_draft(self, depth: int, bold: bool, right: bool) -> None:
        """Take in what loop `depth` drafted, or would have, for a position that went deeper."""
        quality = self._drafts[depth - 1]
        quality.bold.add(bold)
        if bold:
            quality.right.add(right)

    def saw_token(self, depth: int) -> None:
        """Take in at which depth a token came out."""
        self._tokens += 1
        for loop, share in enumerate(self._alive, start=1):
            share.add(depth >= loop)

    def gain(self, draft: Draft, limit: int) -> float:
        """Expected tokens per second with these drafts over those without any, from where a draft can be made."""
        alive = [share.value for share in self._alive[:limit]]
        quality = self._drafts[draft.depth - 1]
        undecided = alive[draft.depth]  # the share of positions that have not stopped where drafts are made
        if undecided < _RARE:
            return 1.0
        head = _HEAD_SHARE * self.block.of(1) if self.head.one is None else self.head.of(1)
        # Of a call over n rows, what it takes anyway and what each row takes. Rows are the same with drafts or without:
        # a position that stopped early goes through the deeper loops with the next one that wants them.
        row = min(self.block.of(1), self.block.of(2) - self.block.of(1))
        call = self.block.of(1) - row
        position = row * sum(share > _RARE for share in alive)
        deep = [share / undecided for share in alive[draft.depth :]]  # calls of an undecided position
        shallow = call * sum(alive[: draft.depth]) + head
        goes_on, is_right = (1 - undecided * (1 - share.value) for share in (quality.bold, quality.right))
        reached = [1.0] + [quality.bold.value * goes_on**i for i in range(draft.rows - 1)]
        rights = [1.0] + [quality.right.value * is_right**i for i in range(draft.rows - 1)]
        cost = (call * draft.depth + head) + (shallow + position) * sum(reached[1:]) + position
        for n in range(1, draft.rows + 1):
            chance = reached[n - 1] - (reached[n] if n < draft.rows else 0.0)  # that the round has n positions
            checked = 1 + (n - 1) * undecided
            calls = sum(1 - (1 - min(1.0, share)) ** checked for share in deep)
            # From the last position of a full round nothing is drafted.
            heads = head * (self.head.of(max(1, round(checked))) / self.head.of(1)) - (head if n == draft.rows else 0.0)
            cost += chance * (call * calls + heads)
        further = sum(a * b for a, b in zip(reached[1:], rights[1:], strict=True))  # tokens after the first
        plain = (call * (draft.depth + sum(deep)) + head + position) + (call * sum(alive) + head + position) * further
        return plain / cost

    def _best(self, limit: int) -> Draft:
        choices: Sequence[Draft] = [Draft(d, n) for d in range(1, limit) for n in range(2, _MOST_ROWS + 1)]
        if self._tokens < _EARLY_PROBES and not self.forced:
            return Draft(limit, 1)
        best = max(choices, key=lambda draft: self.gain(draft, limit), default=Draft(limit, 1))
        if best.rows == 1 or self.forced or self.gain(best, limit) >= _LEAST_GAIN:
            return best
        return Draft(limit, 1)
