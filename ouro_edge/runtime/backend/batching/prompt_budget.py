"""How many rows of prompts share a call with the tokens that other generations decode.

Every generation that shares the engine waits for a prompt's part in a call. Small parts in every call would make each
call a little longer and be slow themselves: a call with prompt rows has fixed costs, and few rows use the processor
badly. So a part is as large as a wait allows, by the times of earlier calls, and calls without prompt rows follow until
the others have had their share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

PROMPT_ROWS = 16  # a group of more rows may be computed in parts: it is a prompt, neither drafts nor a catch-up
LONG_CONTEXT = 512  # a prompt with more positions before it shares no call with another such prompt
MIN_ROWS = 48  # of prompts in a call that has any
FIRST_ROWS = 64  # before calls have been measured
WAIT_SECONDS = 0.75  # that prompt rows may add to a call
PROMPT_TO_OTHERS_RATIO = 1.5  # time that prompts add to calls, to the time that calls take without them
_WEIGHT = 0.2  # of the newest call in the running means


class PromptBudget:
    """Running means of the times of calls, and the share of each group that follows from them. Not thread-safe."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows  # of prompts in one call
        self._plain: float | None = None  # seconds of a call without prompt rows
        self._row: float | None = None  # seconds that a prompt row adds
        self._owed = 0.0  # seconds of calls without prompt rows before the next one with them

    def share(self, waiting: Sequence[int], alone: bool = False) -> list[int]:
        """The rows of each group that the next call computes, of those that wait; 0 for a group that has to wait.

        `alone` says that no other generation is about to submit groups: a prompt then has the call for itself. Prompts
        get equal parts of the budget, so that a short one does not wait for a long one.
        """
        shares = list(waiting)
        prompts = sorted((i for i, rows in enumerate(waiting) if rows > PROMPT_ROWS), key=lambda i: waiting[i])
        if not prompts or (alone and len(waiting) == 1):
            return shares
        others = len(waiting) - len(prompts)
        if others and self._owed > 0:
            return [0 if rows > PROMPT_ROWS else rows for rows in waiting]
        budget = self._max_rows if alone and not others else self._rows()
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
            self._owed = max(self._owed - seconds, 0.0)
        elif self._plain is not None and any(whole <= PROMPT_ROWS for whole in waiting):
            added = max(seconds - self._plain, 0.0)
            self._row = _mean(self._row, added / rows)
            self._owed = max(added / PROMPT_TO_OTHERS_RATIO - self._plain, 0.0)

    def _rows(self) -> int:
        if self._row is None:
            return min(FIRST_ROWS, self._max_rows)
        return int(min(max(WAIT_SECONDS / max(self._row, 1e-9), MIN_ROWS), self._max_rows))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
