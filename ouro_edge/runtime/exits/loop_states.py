"""What the loops have computed for some positions so far: everything that an exit rule may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array

Head = Callable[[Array], Array]  # logits [T, V] of normed states [T, C]
Read = Callable[[Array, NDArray[np.intp]], Array]  # rows [T, W] for the head, of states [T, W] at positions [T]


class LoopStates:
    """Gate logits and states of T positions after loops 1..r. Logits cost a head call: they are made when asked for.

    `states[j]` is what was known after loop j (counted from 1); it shares arrays and logits with the whole.
    """

    __slots__ = ("_head", "_log_probabilities", "_logits", "_output", "_part", "_positions", "_read", "_states",
                 "gate_logits")  # fmt: skip

    def __init__(
        self,
        gate_logits: NDArray[np.float64],
        states: Sequence[Array],
        head: Head,
        logits: dict[int, Array] | None = None,
        *,
        read: Read | None = None,
        positions: NDArray[np.intp] | None = None,
        output: Array | None = None,
        part: slice = slice(None),
    ) -> None:
        self.gate_logits = gate_logits  # [T, r] of loops 1..r; NaN without a gate
        self._states = tuple(states)  # r arrays [T, C], normed
        self._head = head
        self._logits = {} if logits is None else logits  # [T, V] by loop
        self._read, self._positions = read, positions  # how states of these positions [T] become rows for the head
        self._output = output  # [T, W], the last loop's states as the head reads them, if that is known
        self._part = part  # columns of a row that are the state
        self._log_probabilities: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """T, the number of positions."""
        return len(self.gate_logits)

    __iter__ = None  # positions and loops are both sequences: say which

    def __getitem__(self, loop: int) -> LoopStates:
        if not 1 <= loop <= self.loop:
            raise IndexError(f"loop {loop} is outside the {self.loop} loops that ran")
        if loop == self.loop:
            return self
        return self._like(self.gate_logits[:, :loop], self._states[:loop], self._logits, self._positions, None)

    @property
    def loop(self) -> int:
        """The loop r that ran last, counted from 1: the depth of positions that stop here."""
        return len(self._states)

    @property
    def hidden(self) -> Array:
        """[T, C], the normed states after the last loop."""
        return self._states[-1]

    @property
    def state(self) -> Array:
        """[T, C], the part of the last loop's rows that a loop changes."""
        return self.hidden[:, self._part]

    @property
    def output(self) -> Array:
        """[T, W], the last loop's states as the head reads them: behind the coda, in a model that has one."""
        if self._output is None:
            if self._read is None:
                return self.hidden
            assert self._positions is not None
            self._output = self._read(self.hidden, self._positions)
        return self._output

    @property
    def logits(self) -> Array:
        """[T, V] of the head on the last loop's states; the head is called once."""
        if self.loop not in self._logits:
            self._logits[self.loop] = self._head(self.output)
        return self._logits[self.loop]

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """[T, V] log-softmax of the logits."""
        if self._log_probabilities is None:
            shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
            self._log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return self._log_probabilities

    @property
    def entropy(self) -> NDArray[np.float64]:
        """[T], the entropy of the head's distribution after the last loop, in nats."""
        logs = self.log_probabilities
        found: NDArray[np.float64] = -(np.exp(logs) * logs).sum(axis=1)
        return found

    def with_hidden(self, hidden: Array) -> LoopStates:
        """The same, with other states [T, C] after the last loop."""
        earlier = {loop: logits for loop, logits in self._logits.items() if loop < self.loop}
        return self._like(self.gate_logits, (*self._states[:-1], hidden), earlier, self._positions, None)

    def with_output(self, output: Array) -> LoopStates:
        """The same, with the rows [T, W] that the head reads after the last loop."""
        return self._like(self.gate_logits, self._states, self._logits, self._positions, output)

    def rows(self, places: Sequence[int] | slice | NDArray[np.intp]) -> LoopStates:
        """The same of some of the positions, by their row numbers; a slice copies nothing."""
        states = [rows[places] for rows in self._states]
        logits = {loop: rows[places] for loop, rows in self._logits.items()}
        positions = None if self._positions is None else self._positions[places]
        output = None if self._output is None else self._output[places]
        return self._like(self.gate_logits[places], states, logits, positions, output)

    def deeper(self, gate_logits: NDArray[np.float64], hidden: Array) -> LoopStates:
        """After one more loop, which gave these gate logits [T] and states [T, C]."""
        gates = np.column_stack([self.gate_logits, gate_logits])
        return self._like(gates, (*self._states, hidden), self._logits, self._positions, None)

    @classmethod
    def join(cls, parts: Sequence[LoopStates]) -> LoopStates:
        """One object of several that are at the same loop, their positions in order."""
        if len(parts) == 1:
            return parts[0]
        gates = np.concatenate([part.gate_logits for part in parts])
        states = [np.concatenate(rows) for rows in zip(*(part._states for part in parts), strict=True)]
        known = set.intersection(*(set(part._logits) for part in parts))
        logits = {loop: np.concatenate([part._logits[loop] for part in parts]) for loop in known}
        places = [part._positions for part in parts if part._positions is not None]
        return parts[0]._like(gates, states, logits, np.concatenate(places) if places else None, None)

    def _like(
        self,
        gate_logits: NDArray[np.float64],
        states: Sequence[Array],
        logits: dict[int, Array],
        positions: NDArray[np.intp] | None,
        output: Array | None,
    ) -> LoopStates:
        return LoopStates(
            gate_logits, states, self._head, logits,
            read=self._read, positions=positions, output=output, part=self._part,
        )  # fmt: skip
