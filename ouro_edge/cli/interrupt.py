"""Ctrl-C stops an answer, not the program. Knows signals and Cancel."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ouro_edge.runtime.cancel import Cancel


@contextmanager
def stop_on_interrupt() -> Iterator[Cancel]:
    """A Cancel that the first Ctrl-C fires; a second one interrupts the program as usual."""
    cancel = Cancel()

    def stop(signum: int, frame: object) -> None:
        if cancel.cancelled:
            raise KeyboardInterrupt
        cancel.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
