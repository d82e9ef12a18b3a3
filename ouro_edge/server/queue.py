"""The request queue: a bounded number of requests run, a bounded number wait, first come, first served.

Uses asyncio only. All methods must be called in the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ouro_edge.server.http.errors import ApiError


class Queue:
    """At most `parallel` running requests and at most `waiting` waiting ones, first come, first served."""

    def __init__(self, parallel: int, waiting: int) -> None:
        self._parallel, self._bound = parallel, waiting
        self._queued: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._queued)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. ApiError 429 immediately when the queue is full."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    def borrow(self) -> bool:
        """Take a slot that is free and that no request waits for; it is returned with `give_back`."""
        free = self.running < self._parallel and not self._queued
        self.running += free
        return free

    def give_back(self) -> None:
        """Return a borrowed slot."""
        self._leave()

    async def _enter(self) -> None:
        if self.running < self._parallel and not self._queued:
            self.running += 1
            return
        if len(self._queued) >= self._bound:
            message = f"{self.running} requests are running and {len(self._queued)} are waiting: try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queued.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():
                self._leave()  # the slot was already assigned: pass it on
            elif slot in self._queued:  # otherwise `_leave` has already skipped it
                self._queued.remove(slot)
            raise

    def _leave(self) -> None:
        """Pass the slot to the first waiting request, or release it."""
        while self._queued:
            slot = self._queued.popleft()
            if not slot.done():
                slot.set_result(None)
                return
        self.running -= 1
