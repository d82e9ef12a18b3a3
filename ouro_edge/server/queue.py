"""Who is served when: a few requests at once, the rest in the order of their coming, and no more than a bound.

Knows asyncio only. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ouro_edge.server.http.errors import ApiError


class Queue:
    """At most `parallel` holders at once, at most `waiting` behind them, first come first served."""

    def __init__(self, parallel: int, waiting: int) -> None:
        self._parallel, self._bound = parallel, waiting
        self._line: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. ApiError 429 at once when the line is full."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.running < self._parallel and not self._line:
            self.running += 1
            return
        if len(self._line) >= self._bound:
            message = f"{self.running} requests are running and {len(self._line)} waiting: try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()  # the place was ours already: pass it on
            elif place in self._line:  # else somebody who left has passed it by
                self._line.remove(place)
            raise

    def _leave(self) -> None:
        """Hand the place to the first in line, or give it up."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
