"""Runs blocking iterators on worker threads for asyncio; the reader controls the pace.

The worker computes the items that the reader has requested and a bounded number in advance, then returns its thread to
the executor until the next request. So a slow reader delays the work, and no thread waits for a reader. When the reader
stops early (its task is cancelled, or the generator is closed), the Cancel is fired and the generator waits for the end
of the work; after that nothing is in use any more.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ouro_edge.runtime.backend.cancel import Cancel

T = TypeVar("T")


async def iterate(
    start: Callable[[], Iterator[T]],
    cancel: Cancel,
    executor: Executor | None = None,
    *,
    ahead: int = 0,
    is_last: Callable[[T], bool] = lambda item: False,
) -> AsyncGenerator[T, None]:
    """The items of the iterator that `start` returns; `start` and the iterator run on a worker of `executor`.

    Without an executor, a thread is created for the work. At most `ahead` items are computed in advance. `cancel` is
    fired when the reader stops early, unless the last item that it took `is_last`; not when the iterator ends. Errors
    of the work are raised here, except after an early end.
    """
    loop, own = asyncio.get_running_loop(), None
    if executor is None:
        executor = own = ThreadPoolExecutor(1, "ouro-edge")
    arrived: asyncio.Queue[T | _End] = asyncio.Queue()
    worker = _Worker(start, executor, lambda item: loop.call_soon_threadsafe(arrived.put_nowait, item))
    end, more, complete = None, ahead + 1, False
    try:
        while True:
            worker.allow(more)
            item = await arrived.get()
            if isinstance(item, _End):
                end = item
                break
            complete = is_last(item)
            yield item
            more = 1
    finally:
        try:
            if end is None:
                if not complete:
                    cancel.cancel()
                if not loop.is_closed():  # otherwise the generator was never closed, and waiting is not possible
                    worker.allow(math.inf)
                    await _end_of(arrived)
        finally:
            if own is not None:
                own.shutdown(wait=False)
    if end.problem is not None:
        raise end.problem


async def call(function: Callable[[], T], cancel: Cancel, executor: Executor | None = None) -> T:
    """The result of one blocking call; rules as for `iterate`."""
    results = [result async for result in iterate(lambda: iter((function(),)), cancel, executor)]
    return results[0]


@dataclass(frozen=True, slots=True)
class _End:
    """The last item: the work has ended, with `problem` if it failed."""

    problem: BaseException | None = None


class _Worker(Generic[T]):
    """The worker's side: an iterator that runs while items are allowed."""

    def __init__(self, start: Callable[[], Iterator[T]], executor: Executor, put: Callable[[T | _End], object]) -> None:
        self._start, self._executor, self._put = start, executor, put
        self._iterator: Iterator[T] | None = None
        self._lock = threading.Lock()  # guards the next two
        self._allowed: float = 0
        self._running = False

    def allow(self, items: float) -> None:
        """Allow this number of further items."""
        with self._lock:
            self._allowed += items
            if not self._running:
                self._executor.submit(self._run)
                self._running = True

    def _run(self) -> None:
        """Compute until the allowance is used up or the iterator ends; `_running` stays set after the end."""
        try:
            if self._iterator is None:
                self._iterator = self._start()
            while self._may_continue():
                self._put(next(self._iterator))
        except StopIteration:
            self._put(_End())
        except BaseException as problem:  # KeyboardInterrupt too: it is raised in the reader
            self._put(_End(problem))

    def _may_continue(self) -> bool:
        with self._lock:
            self._running = self._allowed >= 1
            self._allowed -= self._running
            return self._running


async def _end_of(arrived: asyncio.Queue[T | _End]) -> None:
    """Drop items until the end; a cancellation meanwhile is raised after it."""
    cancelled = None
    while True:
        try:
            if isinstance(await arrived.get(), _End):
                break
        except asyncio.CancelledError as problem:
            cancelled = problem
    if cancelled is not None:
        raise cancelled
