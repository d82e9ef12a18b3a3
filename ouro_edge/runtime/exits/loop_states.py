"""What the loops have shown of some positions so far: what an exit policy may look at. Knows NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array


class Evidence:
    """What is known of T positions after a loop. Logits cost a call of the head: they are made when asked for."""

    def __init__(
        self,
        gate_logits: NDArray[np.float64],
        hidden: Array,
        head: Callable[[Array], Array],
        before: Evidence | None = None,
    ) -> None:
        self.gate_logits = gate_logits  # [T, r] of loops 1..r; NaN without a gate
        self.hidden = hidden  # [T, C], the normed state after this loop
        self.before = before  # of the loop before; None after the first
        self._head = head

    @property
    def loop(self) -> int:
        """The loop r that this is the evidence of."""
        return self.gate_logits.shape[1]

    @cached_property
    def logits(self) -> Array:
        """[T, V] of the head on this loop's state."""
        return self._head(self.hidden)

    @property
    def has_logits(self) -> bool:
        """Whether somebody has paid for the logits already."""
        return "logits" in self.__dict__

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """[T, V] log-softmax of the logits."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def with_hidden(self, hidden: Array) -> Evidence:
        """The same evidence with another state [T, C] to go on with."""
        return Evidence(self.gate_logits, hidden, self._head, self.before)

    def rows(self, places: Sequence[int]) -> Evidence:
        """The same evidence of the positions at these places."""
        before = None if self.before is None else self.before.rows(places)
        part = Evidence(self.gate_logits[places], self.hidden[places], self._head, before)
        if self.has_logits:
            part.__dict__["logits"] = self.logits[places]
        return part

    def deeper(self, gate_logits: NDArray[np.float64], hidden: Array) -> Evidence:
        """What is known after one more loop, which gave these gate logits [T] and states [T, C]."""
        return Evidence(np.column_stack([self.gate_logits, gate_logits]), hidden, self._head, self)

    @classmethod
    def join(cls, parts: Sequence[Evidence]) -> Evidence:
        """One evidence of several that are of the same loop."""
        if len(parts) == 1:
            return parts[0]
        befores = [part.before for part in parts if part.before is not None]
        whole = cls(
            np.concatenate([part.gate_logits for part in parts]),
            np.concatenate([part.hidden for part in parts]),
            parts[0]._head,
            cls.join(befores) if befores else None,
        )
        if all(part.has_logits for part in parts):
            whole.__dict__["logits"] = np.concatenate([part.logits for part in parts])
        return whole
