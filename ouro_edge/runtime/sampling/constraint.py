"""The protocol of constraints on an answer: grammars, JSON schemas or other rules. Must not import their libraries."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ouro_edge.arch.weights import Array


@runtime_checkable
class Constraint(Protocol):
    """Which tokens may come next: the running state of one answer, so each answer needs a new one."""

    def mask(self, logits: Array) -> None:
        """Set the logits [V] of all forbidden tokens to -inf, in place.

        To let an answer end, allow a stop id; to make it end, allow only stop ids.
        """
        ...

    def accept(self, token: int) -> None:
        """Advance by the chosen token, which may be a stop id."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete: it then ends after the last accepted token, without a stop id."""
        ...
