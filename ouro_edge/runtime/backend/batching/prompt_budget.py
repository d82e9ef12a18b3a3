"""How many rows of prompts share a call with the tokens that other generations decode.

A prompt computed in large pieces is read fastest, but every generation that shares the engine waits for each piece. So
a call with rows of other generations takes in only as many prompt rows as keep it short, by the times of earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence

PROMPT_ROWS = 16  # a group of more rows may be computed in parts: it is a prompt, neither drafts nor a catch-up
LONG_CONTEXT = 512  # a prompt with more positions before it shares no call with another such prompt
MIN_ROWS = 48  # of prompts per call: each call also costs a pass over the keys and values before, if these are int8
FIRST_ROWS = 64  # before calls have been measured
# A call with prompt rows may take this long, or this many times as long as without them. A token needs a call per loop.
CALL_SECONDS = 0.2
CALL_RATIO = 2.5
_WEIGHT = 0.2  # of the newest call in the running means


class PromptBudget:
    """Running means of the times of calls, and the share of each group that follows from them. Not thread-safe."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows  # of prompts in one call
        self._plain: float | None = None  # seconds of a call without prompt rows
        self._row: float | None = None  # seconds that a prompt row adds

    def share(self, waiting: Sequence[int]) -> list[int]:
        """The rows of each group that the next call computes, of those that wait; all rows of a group that is alone.

        Prompts get equal parts of the budget, so that a short one does not wait for a long one.
        """
        shares = list(waiting)
        prompts = sorted((i for i, rows in enumerate(waiting) if rows > PROMPT_ROWS), key=lambda i: waiting[i])
        if len(waiting) == 1 or not prompts:
            return shares
        budget = self._max_rows if len(prompts) == len(waiting) else self._rows()
        for place, i in enumerate(prompts):  # shortest first: what they leave goes to the longer ones
            most = max(1, budget // (len(prompts) - place))
            calls = -(-waiting[i] // most)
            shares[i] = -(-waiting[i] // calls)  # even parts: a short rest would take another kernel
            budget -= shares[i]
        return shares

    def record(self, waiting: Sequence[int], shares: Sequence[int], seconds: float) -> None:
        """Take in the time of a call that computed `shares` of what was `waiting`."""
        rows = sum(part for part, whole in zip(shares, waiting, strict=True) if whole > PROMPT_ROWS)
        if rows == 0:
            self._plain = _mean(self._plain, seconds)
        elif len(shares) > 1 and self._plain is not None:
            self._row = _mean(self._row, max(seconds - self._plain, 0.0) / rows)

    def _rows(self) -> int:
        if self._plain is None or self._row is None:
            return FIRST_ROWS
        spare = max(CALL_SECONDS, CALL_RATIO * self._plain) - self._plain
        return int(min(max(spare / max(self._row, 1e-9), MIN_ROWS), self._max_rows))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
