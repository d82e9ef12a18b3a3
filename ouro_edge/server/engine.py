"""Runs generations on worker threads and hands their events to the event loop. Knows the model, the queue, asyncio.

Cancelling the task that iterates (a client that left, a timeout) fires the generation's Cancel, which ends the block
call in flight, and waits for the thread, so that a place is never given up while its work still runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ouro_edge.errors import Cancelled
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done, Event, Timings, Usage
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward import Score
from ouro_edge.runtime.saved.prefix_cache import PrefixCache
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.limits import Limits
from ouro_edge.server.metrics import Metrics
from ouro_edge.server.options import Options
from ouro_edge.server.queue import Queue

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.sampling.constraint import Constraint

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One prompt and what to do with it."""

    ids: tuple[int, ...]
    options: Options
    max_tokens: int
    top_logprobs: int = 0
    score: int | None = None  # score the prompt first, with so many likely tokens in each place
    constraint: Callable[[], Constraint] | None = None  # made anew for every answer


class Engine:
    """One model behind one queue."""

    def __init__(self, model: Model, limits: Limits, default_exit: ExitPolicy | None = None) -> None:
        self.model, self.limits = model, limits
        self.default_exit = default_exit or model.default_exit()
        self.queue = Queue(limits.parallel, limits.waiting)
        self.metrics = Metrics()
        self.stopping = False
        self._cache = PrefixCache(model, limits.cache_bytes)
        self._workers = ThreadPoolExecutor(limits.parallel, thread_name_prefix="generate")
        self._helpers = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._cancels: set[Cancel] = set()

    async def prepare(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what takes a moment but no place in the queue (rendering, encoding, compiling a schema) off the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, partial(work, *arguments))

    async def compute(self, work: Callable[[Cancel], T]) -> T:
        """Run one blocking call on the model, in turn."""
        async with self.queue.turn(), aclosing(self._from_thread(lambda cancel: iter((work(cancel),)))) as results:
            async for result in results:
                return result
        raise AssertionError("a call ended without a result")

    async def generate(self, plans: Sequence[Plan]) -> AsyncGenerator[tuple[int, Event | Score] | None, None]:
        """Answer every plan, one after the other, in one turn.

        First yields None, when the turn has come; then every event, or the score of the prompt, with the number of its
        answer.
        """
        async with self.queue.turn():
            yield None
            numbered = [(plan, choice) for plan in plans for choice in range(plan.options.choices)]
            for number, (plan, choice) in enumerate(numbered):
                async with aclosing(self._from_thread(partial(self._events, plan, choice))) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            self.metrics.count_answer(event)
                            self._check(event.reason == "cancelled")
                        yield number, event

    def stop(self) -> None:
        """End all generations now, for a server that stops."""
        self.stopping = True
        for cancel in self._cancels:
            cancel.cancel()

    def close(self) -> None:
        """Wait for the threads."""
        self._workers.shutdown()
        self._helpers.shutdown()

    def _events(self, plan: Plan, choice: int, cancel: Cancel) -> Iterator[Event | Score]:
        """Generate one answer on a sequence out of the cache; runs on a worker."""
        sequence = self._cache.checkout(plan.ids)
        options, rows = plan.options, sequence.work.rows
        if plan.score is not None:
            yield self.model.score(
                plan.ids, exit=position_rule(options.exit), top=plan.score, cancel=cancel, sequence=sequence
            )
        if plan.max_tokens:
            events = self.model.generate(
                plan.ids,
                max_tokens=plan.max_tokens,
                exit=options.exit,
                sampler=options.sampler_of(choice),
                stop=options.stop,
                cancel=cancel,
                sequence=sequence,
                top_logprobs=plan.top_logprobs,
                logit_lens=options.lens,
                constraint=plan.constraint() if plan.constraint else None,
            )
        else:
            events = iter((Done("length", "", Usage(len(plan.ids), 0, 0, 0, 0, 0, 0.0), Timings(0.0, 0.0)),))
        for event in events:
            if isinstance(event, Done) and plan.score is not None:  # the score's work is this request's as well
                run = sequence.work.rows - rows
                counts = {"loops_run": run, "loops_saved": sequence.pending_loops}
                event = replace(event, usage=replace(event.usage, cached_tokens=0, **counts))
            yield event
        self._cache.checkin(sequence)  # not after an error: who knows what it holds then

    def _check(self, cancelled: bool = False) -> None:
        if self.stopping or cancelled:
            raise ApiError(503, "the server is stopping", code="server_stopping")

    async def _from_thread(self, start: Callable[[Cancel], Iterator[T]]) -> AsyncGenerator[T, None]:
        """The items of a blocking iterator that runs on a worker."""
        self._check()
        loop, cancel = asyncio.get_running_loop(), Cancel()
        items: asyncio.Queue[T | None] = asyncio.Queue()

        def put(item: T | None) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        def work() -> None:
            try:
                for item in start(cancel):
                    put(item)
            finally:
                put(None)

        self._cancels.add(cancel)
        thread = loop.run_in_executor(self._workers, work)
        try:
            while (item := await items.get()) is not None:
                yield item
            await asyncio.wait([thread])
            thread.result()  # raises what it ended with
        except Cancelled:
            self._check(cancelled=True)
        finally:
            cancel.cancel()
            await asyncio.wait([thread])  # unlike `await thread`, this leaves the future alone when we are cancelled
            thread.exception()  # looked at, because nobody else may
            self._cancels.discard(cancel)
