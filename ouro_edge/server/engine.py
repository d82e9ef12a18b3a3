"""Runs generations on worker threads and passes their events to the event loop.

When the task that reads events is cancelled (client disconnected, timeout), the generation's Cancel is fired, which
ends the current block call; then the task waits for the end of the work, so that a slot is never released too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ouro_edge.errors import Cancelled
from ouro_edge.runtime.async_bridge import call, iterate
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done, Event, Timings, Usage
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward import Score
from ouro_edge.runtime.saved.prefix_cache import PrefixCache
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.shared_prompt import SharedPrompt
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.limits import Limits
from ouro_edge.server.merge import merge
from ouro_edge.server.metrics import Metrics
from ouro_edge.server.options import Options
from ouro_edge.server.queue import Queue

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.sampling.constraint import Constraint

T = TypeVar("T")
_READ_AHEAD_EVENTS = 4  # computed in advance, so that the model does not wait for the network


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """One prompt and its options."""

    ids: tuple[int, ...]
    options: Options
    max_tokens: int
    top_logprobs: int = 0
    new_text: bool = False  # the answer is a text by itself, as in a chat
    score: int | None = None  # score the prompt first, with this number of candidates per position
    prefix: int = 0  # tokens at the start of the prompt that see each other in both directions
    constraint: Callable[[], Constraint] | None = None  # creates a constraint for each answer


@dataclass(frozen=True, slots=True)
class Started:
    """The request has its slot; the following events come from the model."""


class Engine:
    """One model with one queue."""

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
        """Run short work that needs no slot (rendering, encoding, compiling a schema) in a helper thread."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, partial(work, *arguments))

    async def compute(self, work: Callable[[Cancel], T]) -> T:
        """Run one blocking call of the model in a slot."""
        async with self.queue.slot():
            with self._cancellable() as cancel:
                result = await call(partial(work, cancel), cancel, self._workers)
            return result

    async def generate(
        self, jobs: Sequence[GenerationJob]
    ) -> AsyncGenerator[Started | tuple[int, Event | Score], None]:
        """Answer all jobs: one answer after the other in the request's slot, more at a time in slots that are free.

        Yields Started when the request has its slot, then pairs: the number of the answer, and an event or the score of
        the prompt.
        """
        async with self.queue.slot():
            yield Started()
            answers = [partial(self._answer, *answer) for job in jobs for answer in self._choices(job)]
            async with aclosing(merge(answers, self.queue)) as items:
                async for item in items:
                    yield item

    def _choices(self, job: GenerationJob) -> Iterator[tuple[GenerationJob, int, SharedPrompt | None]]:
        """The n answers of a job; they share the keys and values of the prompt, unless it is scored for each."""
        options, prompt = job.options, None
        if options.choices > 1 and job.max_tokens and job.score is None:
            prompt = SharedPrompt(job.ids, options.exit, options.choices, partial(self._sequence, job), job.prefix)
        yield from ((job, choice, prompt) for choice in range(options.choices))

    async def _answer(
        self, job: GenerationJob, choice: int, prompt: SharedPrompt | None
    ) -> AsyncGenerator[Event | Score, None]:
        """One answer, computed on a worker."""
        with self._cancellable() as cancel:
            work = partial(self._events, job, choice, prompt, cancel)
            async with aclosing(iterate(work, cancel, self._workers, ahead=_READ_AHEAD_EVENTS)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        self.metrics.count_answer(event)
                        self._check(event.reason == "cancelled")
                    yield event

    def stop(self) -> None:
        """End all generations immediately, because the server stops."""
        self.stopping = True
        for cancel in self._cancels:
            cancel.cancel()

    def close(self) -> None:
        """Wait for the end of all threads."""
        self._workers.shutdown()
        self._helpers.shutdown()

    def _sequence(self, job: GenerationJob) -> TokenSequence:
        return self._cache.checkout(job.ids) if job.options.cache_prompt else self.model.new_sequence()

    def _events(
        self, job: GenerationJob, choice: int, prompt: SharedPrompt | None, cancel: Cancel
    ) -> Iterator[Event | Score]:
        """Generate one answer with a sequence of the cache, or of the shared prompt; runs on a worker."""
        options = job.options
        sequence = self._sequence(job) if prompt is None else prompt.take(cancel)
        rows = sequence.work.rows
        if job.score is not None:
            sequence.truncate(0)  # scoring starts from nothing: what the request saves is what is pending at its end
            yield self.model.score(
                job.ids, exit=position_rule(options.exit), top=job.score, cancel=cancel, sequence=sequence
            )
        if job.max_tokens:
            events = self.model.generate(
                job.ids,
                max_tokens=job.max_tokens,
                exit=options.exit,
                sampler=options.sampler.for_sample(choice),
                stop=options.stop,
                cancel=cancel,
                sequence=sequence,
                new_text=job.new_text,
                prefix=job.prefix,
                top_logprobs=job.top_logprobs,
                logit_lens=options.lens,
                constraint=job.constraint() if job.constraint else None,
            )
        else:
            events = iter((Done("length", "", Usage(len(job.ids), 0, 0, 0, 0, 0, 0.0), Timings(0.0, 0.0)),))
        for event in events:
            if isinstance(event, Done) and job.score is not None:  # count the work of the score as well
                run = sequence.work.rows - rows
                counts = {"loops_run": run, "loops_saved": sequence.pending_loops}
                event = replace(event, usage=replace(event.usage, cached_tokens=0, **counts))
            if isinstance(event, Done) and prompt is not None and not choice:
                event = prompt.charge(event)
            yield event
        if options.cache_prompt and (prompt is None or not choice):  # of n samples one is enough to keep the prompt
            self._cache.checkin(sequence)  # not after an error, which can leave it inconsistent

    def _check(self, cancelled: bool = False) -> None:
        if self.stopping or cancelled:
            raise ApiError(503, "the server is stopping", code="server_stopping")

    @contextmanager
    def _cancellable(self) -> Iterator[Cancel]:
        """The Cancel of one piece of work; `stop` fires it. ApiError when the server is stopping."""
        self._check()
        cancel = Cancel()
        self._cancels.add(cancel)
        try:
            yield cancel
        except Cancelled:
            self._check(cancelled=True)
        finally:
            self._cancels.discard(cancel)
