"""Several streams of one request at the same time, in its own slot and in slots that are free meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from ouro_edge.server.queue import Queue

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """A stream has ended, with `problem` if it failed."""

    problem: Exception | None
    borrowed: bool


async def merge(
    streams: Sequence[Callable[[], AsyncGenerator[T, None]]], queue: Queue
) -> AsyncGenerator[tuple[int, T], None]:
    """Pairs (number of the stream, item). The caller holds a slot of `queue` for one stream at a time.

    Streams begin in order. An error of one ends all; when this generator ends, all streams have ended.
    """
    arrived: asyncio.Queue[tuple[int, T] | _End] = asyncio.Queue(1)  # a slow reader holds all streams back
    waiting, running = deque(enumerate(streams)), set[asyncio.Task[None]]()

    async def run(number: int, start: Callable[[], AsyncGenerator[T, None]], borrowed: bool) -> None:
        problem = None
        try:
            async with aclosing(start()) as items:
                async for item in items:
                    await arrived.put((number, item))
        except Exception as failure:
            problem = failure
        finally:
            if borrowed:
                queue.give_back()
        await arrived.put(_End(problem, borrowed))

    def begin(borrowed: bool) -> None:
        task = asyncio.create_task(run(*waiting.popleft(), borrowed))
        running.add(task)
        task.add_done_callback(running.discard)

    left = len(streams)
    try:
        if waiting:
            begin(borrowed=False)
        while left:
            while waiting and queue.borrow():
                begin(borrowed=True)
            item = await arrived.get()
            if not isinstance(item, _End):
                yield item
                continue
            left -= 1
            if item.problem is not None:
                raise item.problem
            if waiting and not item.borrowed:
                begin(borrowed=False)
    finally:
        for task in running:
            task.cancel()
        await _all_done(running)


async def _all_done(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for the end of cancelled tasks; a cancellation meanwhile is raised after it."""
    cancelled = None
    while tasks:
        try:
            await asyncio.wait(set(tasks))
        except asyncio.CancelledError as problem:
            cancelled = problem
    if cancelled is not None:
        raise cancelled
