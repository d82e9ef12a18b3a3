"""A backend that computes nothing: a script says which token follows and how many loops it takes. For tests and mocks.

A state row carries what the script said: [token id, next token + 1 (0: none), loops it takes, 0, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.fair_lock import FairLock
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup

# Called with a sequence's token ids and a count n: what follows ids[:n], as (token, loops it takes), or None if every
# token is equally probable. Ids from n on are undefined.
Script = Callable[[NDArray[np.int64], int], tuple[int, int] | None]

CERTAIN_LOGIT = 30.0  # beside it, all other logits count for nothing
_COLUMNS = 3


def no_script(ids: NDArray[np.int64], count: int) -> None:
    """The script that finds every token equally probable."""
    return


class ScriptedBackend:
    """A backend without weights. `config` gives the sizes; a hidden size of at least 3 is needed."""

    kv = "fp32"
    state_id = "scripted"
    rows_per_call = 1 << 20
    slots = 1

    def __init__(self, config: ModelConfig, script: Script = no_script) -> None:
        if config.hidden_size < _COLUMNS:
            raise RequestError(f"hidden_size is {config.hidden_size}; a scripted backend needs at least {_COLUMNS}")
        self.config, self.program, self.script = config, loop_program(config), script
        self.lock = FairLock()
        self.calls = 0  # calls of `run`
        self.rows = 0  # rows computed, summed over all calls

    def new_cache(self, index: int) -> ScriptedCache:
        """An empty cache, which remembers token ids."""
        return ScriptedCache(self.script, index + 1)

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """Follow the script for every row of the groups."""
        with self.lock.hold(cancel):
            if cancel is not None:
                cancel.check()
            self.calls += 1
            self.rows += sum(len(group.rows) for group in groups)
            return [group.cache.run(group.rows, group.start) for group in groups]

    def embed(self, ids: Sequence[int], start: int = 0) -> Array:
        """State rows that carry nothing but the token ids."""
        rows = np.zeros((len(ids), self.program.width), np.float32)
        rows[:, 0] = ids
        return rows

    def head(self, rows: Array) -> Array:
        """Logits [T, V]: certain of the scripted token, equal where there is none."""
        logits = np.zeros((len(rows), self.config.vocab_size), np.float32)
        following = rows[:, 1].astype(np.int64) - 1
        known = following >= 0
        logits[np.flatnonzero(known), following[known]] = CERTAIN_LOGIT
        return logits


class ScriptedCache:
    """The token ids that one pass of one sequence has seen."""

    nbytes = 0

    def __init__(self, script: Script, loop: int) -> None:
        self.script = script  # of this sequence; may be replaced
        self._loop = loop
        self._ids = np.zeros(0, np.int64)

    def reserve(self, length: int) -> None:
        """Make room for `length` token ids."""
        self._ids = np.zeros(length, np.int64)

    def valid(self, length: int) -> list[NDArray[Any]]:
        """The first `length` token ids."""
        return [self._ids[:length]]

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        """Copy the first `length` token ids from what `valid` returned."""
        (ids,) = arrays
        self._ids[:length] = ids

    def run(self, rows: Array, start: int) -> GroupOutput:
        """The rows, with what the script says of each added by the first loop; gates stop a row at its depth."""
        stop = start + len(rows)
        if stop > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(64, stop), np.int64)])
        self._ids[start:stop] = rows[:, 0]
        if self._loop == 1:
            rows = rows.copy()
            for place in range(len(rows)):
                said = self.script(self._ids, start + place + 1)
                if said is not None:
                    rows[place, 1:_COLUMNS] = said[0] + 1, said[1]
        gates = np.where(self._loop < rows[:, 2], -CERTAIN_LOGIT, CERTAIN_LOGIT).astype(np.float32)
        gates[rows[:, 2] == 0] = 0.0  # nothing was said
        return GroupOutput(rows, gates)
