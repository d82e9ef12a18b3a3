"""What a grammar, a JSON schema or any other rule must offer to steer an answer. Knows no library that makes them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ouro_edge.arch.weights import Array


@runtime_checkable
class Constraint(Protocol):
    """Which tokens may come next, step by step: the running state of one answer, so each answer needs a fresh one."""

    def mask(self, logits: Array) -> None:
        """Set the logits [V] of all tokens that may not come next to -inf, in place.

        To let an answer end, leave a stop id open; to make it end, leave only stop ids.
        """
        ...

    def accept(self, token: int) -> None:
        """Take notice of the token that was chosen, also when it is a stop id."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete: it ends after the token accepted last, without waiting for a stop id."""
        ...
