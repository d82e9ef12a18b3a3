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
        # The first entry holds the lock, the others wait. This is the only state, so an exception such as
        # KeyboardInterrupt cannot leave the lock taken without a holder.
        self._queue: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """The number of waiting threads."""
        return max(0, len(self._queue) - 1)

    @contextmanager
    def hold(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Acquire the lock. Raises Cancelled, and leaves the queue, when `cancel` fires meanwhile."""
        mine = threading.Event()
        try:
            with self._guard:
                self._queue.append(mine)
                self._queue[0].set()
            while not mine.wait(None if cancel is None else _CANCEL_POLL_SECONDS):
                assert cancel is not None
                cancel.check()
            yield
        finally:
            try:
                self._leave(mine)
            except BaseException:  # Ctrl-C came in between
                self._leave(mine)
                raise

    def _leave(self, mine: threading.Event) -> None:
        """Pass the lock to the next thread, or leave the queue."""
        with self._guard:
            if mine in self._queue:
                self._queue.remove(mine)
            if self._queue:
                self._queue[0].set()
