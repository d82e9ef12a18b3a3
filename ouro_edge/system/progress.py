"""How a long operation reports how far it is: one kind of callback for export, calibration, downloads and checks."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Protocol

WAITING = "another process converts this model: waiting"  # reported instead of a step, with 0 of 1 steps done
_STEPS = 1000  # of a stage with a share of 1


class Progress(Protocol):
    """A callback `progress(done, total, what)`: `done` of `total` steps, and what is worked on, which may be empty.

    `done` rises from 0 to `total`. Where several jobs follow each other (a download, then a conversion), each has its
    own total. Calls come one at a time, those of a download from another thread. An exception ends the operation.
    """

    def __call__(self, done: int, total: int, what: str, /) -> None: ...


def stages(progress: Progress | None, *shares: int) -> tuple[Progress | None, ...]:
    """One callback for each of several consecutive stages of one operation, given their shares of its time.

    `progress` then sees one job of fixed length. A stage may again be divided into stages.
    """
    if progress is None:
        return (None,) * len(shares)
    ends = [_STEPS * end for end in accumulate(shares, initial=0)]
    return tuple(_stage(progress, start, end, ends[-1]) for start, end in pairwise(ends))


def _stage(progress: Progress, start: int, end: int, whole: int) -> Progress:
    def report(done: int, total: int, what: str, /) -> None:
        progress(start + (end - start) * done // total if total else end, whole, what)

    return report
