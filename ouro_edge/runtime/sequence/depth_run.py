"""The loop over loops: positions of one sequence go through the loops until an exit rule has stopped each.

Decoding (one position), forward passes (all positions), speculation (drafted positions) and traces (all positions, all
loops) are this one loop with other positions and rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.exits.expected_logits import exit_states
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.loop_states import Head, LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy

if TYPE_CHECKING:
    from ouro_edge.runtime.sequence.sequence import TokenSequence
    from ouro_edge.runtime.sequence.work import LoopChunk

Advance = Callable[[int, int], "list[LoopChunk]"]  # of a loop as far as a position: what it has computed

_ROWS_PER_DECISION = 128  # positions that a rule sees at a time: their logits take 24 MiB at a vocabulary of 49152
_ROWS_WITH_KEPT_LOGITS = 16  # up to here logits that a rule has looked at are kept, as for tokens that are generated


@dataclass(frozen=True, slots=True)
class Exited:
    """The positions that stopped after one loop; with none, `states` are those of all positions of the run."""

    positions: list[int]
    states: LoopStates  # `loop` is their depth


class DepthRun:
    """Positions on their way through the loops. Iterate to run it to the end; yields an Exited per loop."""

    def __init__(
        self,
        sequence: TokenSequence,
        positions: Sequence[int],
        policy: ExitPolicy,
        *,
        head: Head | None = None,
        cancel: Cancel | None = None,
        settled: bool = False,
        advance: Advance | None = None,
        leave: bool = True,
    ) -> None:
        self.positions = list(positions)  # ascending; those that have not stopped
        self.states: LoopStates | None = None  # of these positions; None before the first loop
        self._sequence, self._policy, self._cancel = sequence, policy, cancel
        self._head = sequence.backend.head if head is None else head
        self._program = sequence.backend.program
        self._limit = self._program.exit_at(policy.limit(sequence.config))
        self._settled = settled  # whether all positions before the first have left, or are another run's
        self._given = advance  # what computes the loops, if it is not the sequence
        self._leaves = leave  # whether positions take the coda when they stop; otherwise that is the caller's work
        self._part = self._program.state_columns(sequence.config.hidden_size)

    @property
    def loop(self) -> int:
        """The loop that ran last, counted from 1; 0 before the first."""
        return 0 if self.states is None else self.states.loop

    def __iter__(self) -> Iterator[Exited]:
        return self.until(self._limit)

    def until(self, depth: int) -> Iterator[Exited]:
        """Run at most to loop `depth`, as long as any position has not stopped."""
        while self.positions and self.loop < depth:
            yield self._step(self.loop + 1)

    def join(self, other: DepthRun) -> None:
        """Take over the positions of another run at the same loop, all of them behind this run's own."""
        assert self.states is not None and other.states is not None and self.loop == other.loop
        self.positions += other.positions
        self.states = LoopStates.join([self.states, other.states])

    def drop_from(self, position: int) -> None:
        """Forget all positions from this one on."""
        keep = [at for at in self.positions if at < position]
        if self.states is not None and len(keep) < len(self.positions):
            self.states = self.states.rows(slice(len(keep)))
        self.positions = keep

    def _step(self, loop: int) -> Exited:
        """Run one loop as far as the last position; the positions that stop there leave the run."""
        if self.states is None:
            self._prepare()
        gates, hidden = self._gather(self._advance(loop, self.positions[-1] + 1))
        earlier = self.states
        states = self._first_states(gates, hidden) if earlier is None else earlier.deeper(gates, hidden)
        if loop < self._limit:
            stops = self._decide(states) if self._program.may_exit(loop) else None
            count = 0 if stops is None else int(np.count_nonzero(stops))
        else:
            stops, count = None, len(states)
        if count == 0:
            self.states = states
            return Exited([], states)
        if count == len(states):
            leaving, self.positions, self.states = self.positions, [], states
            return Exited(leaving, self._leave(leaving, exit_states(self._policy, states)))
        assert stops is not None
        where, rest = np.flatnonzero(stops), np.flatnonzero(~stops)
        exited = Exited([self.positions[i] for i in where], exit_states(self._policy, states.rows(where)))
        self.positions = [self.positions[i] for i in rest]
        self.states = states.rows(rest)
        return exited

    def _prepare(self) -> None:
        """Everything before the first loop."""
        if not self._settled:
            limit = self._program.exit_at(position_rule(self._policy).limit(self._sequence.config))
            self._sequence.settle(self.positions[0], limit, self._cancel)
        for step in range(1, self._program.first_loop + 1):
            self._sequence.advance(step, self.positions[-1] + 1, self._cancel)

    def _advance(self, loop: int, upto: int) -> list[LoopChunk]:
        if self._given is not None:
            return self._given(loop, upto)
        return self._sequence.advance(self._program.step_of(loop), upto, self._cancel, since=self.positions[0])

    def _first_states(self, gates: NDArray[np.float64], hidden: Array) -> LoopStates:
        """The states after the first loop."""
        coda = self._sequence.coda
        if coda is None:
            return LoopStates(gates[:, None], [hidden], self._head)
        return LoopStates(
            gates[:, None], [hidden], self._head,
            read=partial(coda.read, cancel=self._cancel), positions=np.array(self.positions), part=self._part,
        )  # fmt: skip

    def _leave(self, positions: Sequence[int], states: LoopStates) -> LoopStates:
        """The states of positions that leave, with the rows that the head reads."""
        coda = self._sequence.coda
        if coda is None or not self._leaves:
            return states
        depths = [states.loop] * len(states)
        return states.with_output(coda.commit(positions[0], states.hidden, depths, self._cancel))

    def _decide(self, states: LoopStates) -> NDArray[np.bool_]:
        """Which positions stop. Logits are kept for a few positions only, which bounds the memory."""
        if len(states) <= _ROWS_WITH_KEPT_LOGITS:
            return self._policy.stops(states)
        parts = (slice(i, i + _ROWS_PER_DECISION) for i in range(0, len(states), _ROWS_PER_DECISION))
        return np.concatenate([self._policy.stops(states.rows(part)) for part in parts])

    def _gather(self, chunks: Sequence[LoopChunk]) -> tuple[NDArray[np.float64], Array]:
        """Gate logits [T] and states [T, W] of the run's positions."""
        if len(chunks) == 1 and chunks[0].start == self.positions[0] and len(chunks[0].gates) == len(self.positions):
            return chunks[0].gates.astype(np.float64), chunks[0].states
        needed = [chunk for chunk in chunks if chunk.start + len(chunk.states) > self.positions[0]]
        if not needed or needed[0].start > self.positions[0]:
            raise RequestError("the last position was processed before: append a token first")
        begin, states, gates = needed[0].start, needed[0].states, needed[0].gates
        if len(needed) > 1:
            states = np.concatenate([chunk.states for chunk in needed])
            gates = np.concatenate([chunk.gates for chunk in needed])
        places = np.array(self.positions) - begin
        if len(places) == len(states):
            return gates.astype(np.float64), states
        return gates[places].astype(np.float64), states[places]
