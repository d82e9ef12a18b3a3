"""What a thread submits to the call queue: row groups for the block, or rows for the head, and what became of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ouro_edge.runtime.backend.batching.prompt_budget import LONG_CONTEXT, PROMPT_ROWS
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup


class Job:
    """One submission: `kind` names its graph. A job of one row group may be computed in parts."""

    def __init__(self, kind: str, work: Any, cancel: Cancel | None) -> None:
        self.kind, self.work, self.cancel = kind, work, cancel
        self.thread = threading.get_ident()
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.leads = False
        self.abandoned = False  # its thread has gone: what is left is not computed
        self.wake = threading.Event()
        self._parts: list[GroupOutput] = []
        self._computed = 0  # rows of the group

    def waiting_rows(self) -> list[int]:
        """Rows of every group that wait."""
        if len(self.work) > 1:
            return [len(group.rows) for group in self.work]
        return [len(self.work[0].rows) - self._computed]

    @property
    def is_long_prompt(self) -> bool:
        """Whether many rows with many positions before them wait."""
        if len(self.work) > 1 or self.waiting_rows()[0] <= PROMPT_ROWS:
            return False
        start: int = self.work[0].start + self._computed
        return start > LONG_CONTEXT

    def next_groups(self, counts: Sequence[int]) -> list[RowGroup]:
        """The groups for the next call, with so many rows; all rows if there are several groups."""
        if len(self.work) > 1 or counts[0] == len(self.work[0].rows):
            return list(self.work)
        (group,), first = self.work, self._computed
        rows = group.rows[first : first + counts[0]]
        return [replace(group, start=group.start + first, rows=rows)]

    def take(self, outputs: list[GroupOutput]) -> None:
        """Take in the outputs of `next_groups`; sets the result when no rows are left."""
        if len(self.work) > 1 or len(outputs[0].gates) == len(self.work[0].rows):
            self.result, self.done = outputs, True
            return
        (output,) = outputs
        self._computed += len(output.gates)
        # Copies: an output may be a view that the call for the next part overwrites.
        self._parts.append(GroupOutput(output.states.copy(), output.gates.copy()))
        if self._computed == len(self.work[0].rows):
            states, gates = ([getattr(part, name) for part in self._parts] for name in ("states", "gates"))
            self.result, self.done = [GroupOutput(np.concatenate(states), np.concatenate(gates))], True
