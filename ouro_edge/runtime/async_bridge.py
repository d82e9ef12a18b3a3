"""Runs blocking iterators on worker threads for readers in asyncio, at the reader's pace.

The worker computes what the reader has asked for and a bounded number of items ahead, then returns its thread to the
executor until the reader asks again: a slow reader holds the work back, and no thread waits for a reader. When the
reader stops early (its task is cancelled, or the generator is closed), the Cancel is fired and the end of the work is
waited for: afterwards everything that the work used is free.
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
    """The items of the iterator that `start` makes; `start` and the iterator run on a worker of `executor`.

    Without an executor the work has a thread of its own. At most `ahead` items are computed before they are asked for.
    `cancel` is what ends the work early; it is not fired when the iterator ends by itself, nor when the reader stops
    after an item that `is_last`. Errors of the work are raised here, except after an early end.
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
                if not loop.is_closed():  # else the generator was forgotten, and nothing can be waited for
                    worker.allow(math.inf)
                    await _end_of(arrived)
        finally:
            if own is not None:
                own.shutdown(wait=False)
    if end.problem is not None:
        raise end.problem


async def call(function: Callable[[], T], cancel: Cancel, executor: Executor | None = None) -> T:
    """The result of one blocking call, under the same rules."""
    results = [result async for result in iterate(lambda: iter((function(),)), cancel, executor)]
    return results[0]


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing comes after it; the work ended by itself or with this error."""

    problem: BaseException | None = None


class _Worker(Generic[T]):
    """The side of the worker thread: an iterator that continues while items are allowed."""

    def __init__(self, start: Callable[[], Iterator[T]], executor: Executor, put: Callable[[T | _End], object]) -> None:
        self._start, self._executor, self._put = start, executor, put
        self._iterator: Iterator[T] | None = None
        self._lock = threading.Lock()  # guards the two below
        self._allowed: float = 0
        self._running = False

    def allow(self, items: float) -> None:
        """Let so many more items be computed."""
        with self._lock:
            self._allowed += items
            if not self._running:
                self._executor.submit(self._run)
                self._running = True

    def _run(self) -> None:
        """Compute until the allowance is used up, or until the end, after which `_running` stays set."""
        try:
            if self._iterator is None:
                self._iterator = self._start()
            while self._may_continue():
                self._put(next(self._iterator))
        except StopIteration:
            self._put(_End())
        except BaseException as problem:  # KeyboardInterrupt too: the reader is where it belongs
            self._put(_End(problem))

    def _may_continue(self) -> bool:
        with self._lock:
            self._running = self._allowed >= 1
            self._allowed -= self._running
            return self._running


async def _end_of(arrived: asyncio.Queue[T | _End]) -> None:
    """Drop items until the end; a task that is cancelled meanwhile is told afterwards."""
    cancelled = None
    while True:
        try:
            if isinstance(await arrived.get(), _End):
                break
        except asyncio.CancelledError as problem:
            cancelled = problem
    if cancelled is not None:
        raise cancelled
