"""The bridge from blocking iterators to asyncio: its pace, its ends, and the threads it uses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest

from ouro_edge.runtime.async_bridge import call, iterate
from ouro_edge.runtime.backend.cancel import Cancel


class Counter:
    """Counts up, on whatever thread it is run, until it is cancelled or reaches its end."""

    def __init__(self, end: int = 10**9, problem: BaseException | None = None) -> None:
        self.cancel = Cancel()
        self.computed = 0
        self.threads: set[str] = set()
        self.ended = False
        self._end, self._problem = end, problem

    def start(self) -> Iterator[int]:
        while self.computed < self._end and not self.cancel.cancelled:
            self.computed += 1
            self.threads.add(threading.current_thread().name)
            yield self.computed
        self.ended = True
        if self._problem:
            raise self._problem


class Blocked:
    """Computes one item, then another one that lasts until it is cancelled and let go."""

    def __init__(self) -> None:
        self.cancel, self.go, self.ended = Cancel(), threading.Event(), False
        self.inside = threading.Event()

    def start(self) -> Iterator[int]:
        yield 1
        self.inside.set()
        self.go.wait(30)
        self.ended = self.cancel.cancelled
        yield 2


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def settled(executor: ThreadPoolExecutor) -> None:
    """Wait until the only thread of the executor has nothing to do."""
    await asyncio.wrap_future(executor.submit(int))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_items_come_in_order_and_the_cancel_is_left_alone() -> None:
    async def main() -> None:
        for ahead in (0, 1, 1000):
            work = Counter(end=200)
            assert [i async for i in iterate(work.start, work.cancel, ahead=ahead)] == list(range(1, 201))
            assert not work.cancel.cancelled and work.ended
            assert all(name.startswith("ouro-edge") for name in work.threads)

    run(main)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_slow_reader_holds_the_work_back_and_no_thread_waits_for_it(ahead: int) -> None:
    async def main() -> None:
        work = Counter()
        with ThreadPoolExecutor(1, "mine") as executor:
            async with aclosing(iterate(work.start, work.cancel, executor, ahead=ahead)) as items:
                for asked in range(1, 6):
                    assert await anext(items) == asked
                    await settled(executor)  # the thread serves others meanwhile
                    assert work.computed == asked + ahead
        assert {name.startswith("mine") for name in work.threads} == {True}

    run(main)


def test_items_ahead_are_computed_while_the_reader_is_busy() -> None:
    async def main() -> None:
        work = Counter()
        async with aclosing(iterate(work.start, work.cancel, ahead=2)) as items:
            await anext(items)
            await until(lambda: work.computed == 3)
            await asyncio.sleep(0.05)
            assert work.computed == 3  # the one taken and two ahead, no more
            assert [await anext(items), await anext(items)] == [2, 3]

    run(main)


@pytest.mark.parametrize("ahead", [0, 5])
def test_errors_come_after_the_items_before_them(ahead: int) -> None:
    async def main() -> None:
        work, seen = Counter(3, KeyError("broken")), []
        with pytest.raises(KeyError, match="broken"):
            async for item in iterate(work.start, work.cancel, ahead=ahead):
                seen.append(item)
        assert seen == [1, 2, 3] and not work.cancel.cancelled

    run(main)


def test_an_error_at_the_start_is_raised() -> None:
    def start() -> Iterator[int]:
        raise KeyError("broken")

    async def main() -> None:
        with pytest.raises(KeyError, match="broken"):
            await anext(iterate(start, Cancel()))

    run(main)


def test_closing_fires_the_cancel_and_waits_for_the_end() -> None:
    async def main() -> None:
        work = Counter()
        async with aclosing(iterate(work.start, work.cancel, ahead=3)) as items:
            await anext(items)
        assert work.cancel.cancelled and work.ended

    run(main)


def test_a_task_that_is_cancelled_twice_waits_all_the_same() -> None:
    async def main() -> None:
        work = Blocked()
        with ThreadPoolExecutor(1) as executor:

            async def read() -> None:
                async for _ in iterate(work.start, work.cancel, executor):
                    pass

            task = asyncio.ensure_future(read())
            await until(work.inside.is_set)
            for _ in range(3):
                task.cancel()
                await asyncio.wait([task], timeout=0)
            assert work.cancel.cancelled and not task.done()
            work.go.set()
            await asyncio.wait([task])
            assert task.cancelled() and work.ended

    run(main)


def test_errors_after_an_early_end_are_dropped() -> None:
    async def main() -> None:
        work = Counter(problem=KeyError("too late"))
        async with aclosing(iterate(work.start, work.cancel)) as items:
            await anext(items)
        assert work.ended

    run(main)


def test_an_executor_that_is_shut_down_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        executor, work = ThreadPoolExecutor(1), Counter()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            await anext(iterate(work.start, work.cancel, executor))

    run(main)


def test_a_reader_that_was_forgotten_leaves_no_thread() -> None:
    work = Counter()
    loop = asyncio.new_event_loop()
    items = iterate(work.start, work.cancel)
    loop.run_until_complete(anext(items))
    loop.close()
    del items
    (name,) = work.threads
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(30)
            assert not thread.is_alive()


def test_one_call() -> None:
    async def main() -> None:
        cancel = Cancel()
        assert await call(lambda: threading.current_thread().name, cancel) != threading.current_thread().name
        with pytest.raises(ZeroDivisionError):
            await call(lambda: 1 // 0, cancel)
        assert not cancel.cancelled

    run(main)
