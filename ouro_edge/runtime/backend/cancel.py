"""Stopping a generation from another thread, within one call of the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ouro_edge.errors import Cancelled


class Cancel:
    """A switch for `generate`: `cancel()`, called from any thread or a signal handler, stops it for good."""

    def __init__(self) -> None:
        self.cancelled = False
        self._handle: Any = None

    def handle(self, make: Callable[[], Any]) -> Any:
        """The backend's object for this switch, made once; its `terminate` becomes True when the switch fires."""
        if self._handle is None:
            self._handle = make()
            if self.cancelled:  # fired before the handle could be seen
                self._handle.terminate = True
        return self._handle

    def cancel(self) -> None:
        """Stop now: a call in flight ends early, and its result is dropped. Takes no locks."""
        self.cancelled = True
        if self._handle is not None:
            self._handle.terminate = True

    def check(self) -> None:
        """Raise Cancelled if the switch has fired."""
        if self.cancelled:
            raise Cancelled("cancelled")
