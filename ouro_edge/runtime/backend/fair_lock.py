"""A lock that serves threads in the order of arrival, so that conversations on one model share it equally.

threading.Lock has no order: a thread that takes it again immediately can starve the waiting threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ouro_edge.runtime.backend.cancel import Cancel

# Interval at which a waiting thread checks its Cancel. A Cancel can be fired in a signal handler, which must not take
# locks and so cannot wake the thread.
_CANCEL_POLL_SECONDS = 0.02


class FairLock:
    """Mutual exclusion, first come, first served: `with lock.hold(): ...`. Not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._queue: deque[threading.Event] = deque()  # waiting threads, the first in front

    @property
    def waiting(self) -> int:
        """The number of waiting threads."""
        return len(self._queue)

    @contextmanager
    def hold(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Acquire the lock. Raises Cancelled, and leaves the queue, when `cancel` fires meanwhile."""
        mine = threading.Event()
        with self._guard:
            if not self._taken:
                self._taken = True
                mine.set()
            else:
                self._queue.append(mine)
        try:
            while not mine.wait(None if cancel is None else _CANCEL_POLL_SECONDS):
                assert cancel is not None
                cancel.check()
            yield
        finally:
            self._leave(mine)

    def _leave(self, mine: threading.Event) -> None:
        """Pass the lock to the next thread, or leave the queue."""
        with self._guard:
            if not mine.is_set():
                self._queue.remove(mine)
            elif self._queue:
                self._queue.popleft().set()  # `_taken` stays set, so that no other thread can come first
            else:
                self._taken = False
