"""Ctrl-C stops an answer instead of the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ouro_edge.runtime.backend.cancel import Cancel


@contextmanager
def stop_on_interrupt(*, insist: bool = True) -> Iterator[Cancel]:
    """A Cancel that the first Ctrl-C fires; if `insist`, a second Ctrl-C interrupts the program as usual."""
    cancel = Cancel()

    def stop(signum: int, frame: object) -> None:
        if cancel.cancelled and insist:
            raise KeyboardInterrupt
        cancel.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C between answers, so that a late second Ctrl-C does not end the conversation."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
