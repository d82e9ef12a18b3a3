"""Stopping a generation from another thread, within one call of the block. Knows onnxruntime's RunOptions."""

from __future__ import annotations

from typing import Any

from ouro_edge.errors import Cancelled
from ouro_edge.runtime.backend.session import import_onnxruntime


class Cancel:
    """A switch to hand to `generate`: `cancel()` from any thread, or a signal handler, stops it for good."""

    def __init__(self) -> None:
        self.cancelled = False
        self._options: Any = None

    @property
    def run_options(self) -> Any:
        """The RunOptions that every call of this generation runs under."""
        if self._options is None:
            self._options = import_onnxruntime().RunOptions()
            if self.cancelled:  # fired meanwhile, before it could see the options
                self._options.terminate = True
        return self._options

    def cancel(self) -> None:
        """Stop now: a block call in flight ends early, and its result is dropped."""
        self.cancelled = True
        if self._options is not None:
            self._options.terminate = True

    def check(self) -> None:
        """Raise Cancelled when the switch was thrown."""
        if self.cancelled:
            raise Cancelled("cancelled")
