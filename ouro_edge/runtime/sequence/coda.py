"""The coda of one sequence: a pass that every position takes once, with the state at its exit, for the head to read.

The coda has keys and values, so its row of a position depends on the exits of all earlier ones. Rows are committed in
the order of positions. What a rule or a draft looks at of other states is read over the same cache: that overwrites the
entry of the position, which is put back before a later position needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend, RowGroup
from ouro_edge.runtime.exits.policies import ExitPolicy


class Coda:
    """The exits of the positions of a sequence, and the cache with their keys and values."""

    def __init__(self, backend: Backend, count_call: Callable[[], None]) -> None:
        assert backend.program.coda is not None
        self.cache = backend.new_cache(backend.program.coda.cache)
        self.exits: list[int] = []  # depths of the positions that are committed
        self._backend, self._count_call = backend, count_call
        self._valid = 0  # entries of the cache, from the front, that are those of the exits
        self._written = 0  # entries of the cache, from the front, that any state has filled
        self._kept: tuple[int, Array] = (0, np.empty((0, backend.program.width), np.float32))  # of the last commit
        self._last: tuple[int, Array, Array] | None = None  # position, state and output of the last call, if of one row

    def __len__(self) -> int:
        """Number of positions that are committed."""
        return len(self.exits)

    def commit(self, start: int, rows: Array, depths: Sequence[int], cancel: Cancel | None = None) -> Array:
        """Rows [T, W] for the head of states [T, W], with which positions start..start+T have left at these depths."""
        assert start == len(self), "positions leave in order"
        if self._last is not None and self._last[0] == start and np.array_equal(self._last[1], rows):
            output = self._last[2]  # the exit rule has just looked at it
        else:
            output = self._run(start, rows, cancel)
        self._kept = (start, rows.copy())
        self.exits += depths
        self._valid = len(self)
        return output

    def read(self, rows: Array, positions: NDArray[np.intp], cancel: Cancel | None = None) -> Array:
        """Rows [T, W] for the head of other states of these positions, each over the exits of all before it."""
        found = np.empty_like(rows)
        for place in np.argsort(-positions, kind="stable"):  # from the back, so that entries in front stay valid
            found[place] = self._run(int(positions[place]), rows[place : place + 1], cancel)[0]
        return found

    def read_uniform(self, rows: Array, cancel: Cancel | None = None) -> Array:
        """Rows [T, W] for the head if positions 0..T left with these states [T, W]; nothing is committed."""
        return self._run(0, rows, cancel)

    def restore(self, upto: int | None = None, cancel: Cancel | None = None) -> None:
        """Make the entries before position `upto` (default: all that are committed) those of the exits again."""
        upto = len(self) if upto is None else min(upto, len(self))
        first, rows = self._kept
        if upto <= self._valid:
            return
        if first > self._valid:
            raise RequestError("states of an earlier token were read, and the sequence cannot go on: start a new one")
        start = self._valid
        self._compute(start, rows[start - first : upto - first], cancel)
        self._valid = upto

    def truncate(self, length: int) -> None:
        """Forget all positions from this one on."""
        del self.exits[length:]
        self._valid, self._written = min(self._valid, length), min(self._written, length)
        first, rows = self._kept
        self._kept, self._last = (first, rows[: max(0, length - first)]), None

    def load(self, exits: Sequence[int]) -> None:
        """Take over these exits; the caller fills the cache."""
        self.exits, self._last = list(exits), None
        self._valid = self._written = len(exits)
        self._kept = (len(exits), self._kept[1][:0])

    def _run(self, start: int, rows: Array, cancel: Cancel | None) -> Array:
        """The coda on rows that are not exits, or not yet: entries before `start` are put right first."""
        self.restore(start, cancel)
        assert start <= self._written
        self._valid = min(self._valid, start)
        output = self._compute(start, rows, cancel)
        self._last = (start, rows.copy(), output) if len(rows) == 1 else None
        return output

    def _compute(self, start: int, rows: Array, cancel: Cancel | None) -> Array:
        written, self._written, self._last = self._written, start, None  # whatever happens during a call
        outputs = []
        calls = -(-len(rows) // self._backend.rows_per_call)
        for part in np.array_split(rows, max(1, calls)):
            (output,) = self._backend.run([RowGroup(self.cache, self._written, part)], cancel)
            self._count_call()
            outputs.append(output.states.copy())
            self._written += len(part)
        self._written = max(written, self._written)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


class WithoutCoda:
    """What a sequence says about its coda, and about drafts, when it has nothing to say; `CodaSequence` has."""

    coda: Coda | None = None

    @property
    def exits(self) -> list[int]:
        """Depths at which positions have left for the coda, in order."""
        return []

    def settle(self, position: int, depth: int, cancel: Cancel | None = None) -> None:
        """Commit the exits of all positions before this one."""

    def draft_obstacle(self, policy: ExitPolicy) -> str | None:
        """Why tokens cannot be drafted from shallow loops and verified by deeper ones under this rule, or None."""
        return None
