"""A lock that serves in the order of arrival, so that conversations on one model share it equally.

threading.Lock lets whoever comes next have it: a thread that takes it again at once starves those that wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ouro_edge.runtime.backend.cancel import Cancel

# Seconds between looks at a Cancel while waiting. It may be fired in a signal handler, which may take no locks and so
# can wake nobody.
_LOOK = 0.02


class FairLock:
    """First come, first served: `with lock.hold():` around what only one thread may do at a time. Not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._queue: deque[threading.Event] = deque()  # those that wait, the first in front

    @property
    def waiting(self) -> int:
        """How many threads wait for their turn now."""
        return len(self._queue)

    @contextmanager
    def hold(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Wait for the turn and hold it. Raises Cancelled, and leaves the queue, when `cancel` fires meanwhile."""
        mine = threading.Event()
        with self._guard:
            if not self._taken:
                self._taken = True
                mine.set()
            else:
                self._queue.append(mine)
        try:
            while not mine.wait(None if cancel is None else _LOOK):
                assert cancel is not None
                cancel.check()
            yield
        finally:
            self._leave(mine)

    def _leave(self, mine: threading.Event) -> None:
        """Hand the turn to the next, or give up the place in the queue."""
        with self._guard:
            if not mine.is_set():
                self._queue.remove(mine)
            elif self._queue:
                self._queue.popleft().set()  # the turn is theirs from here: nobody can come between
            else:
                self._taken = False
