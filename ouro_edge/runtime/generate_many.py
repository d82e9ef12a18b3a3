"""Many generations at once on one model: a thread per running generation, events as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ouro_edge.errors import Cancelled, RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done, Event
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.shared_prompt import SharedPrompt

Generate = Callable[..., Iterator[Event]]

_MAX_EVENTS_AHEAD = 256  # a slow reader holds the generations back
_OF_ONE_ANSWER = ("sequence", "constraint")


def check_many(options: Mapping[str, Any]) -> None:
    """RequestError for options that belong to one answer."""
    for name in _OF_ONE_ANSWER:
        if options.get(name) is not None:
            raise RequestError(f"{name} belongs to one answer: use generate")


def samples_of(generate: Generate, prompt: SharedPrompt, samples: int, sampler: Sampler) -> Iterator[Generate]:
    """The samples of one prompt, as functions like `generate` without its first argument; each has its own seed."""

    def sample(number: int, cancel: Cancel, **options: Any) -> Iterator[Event]:
        own = {**options, "sampler": sampler.for_sample(number), "sequence": prompt.take(cancel)}
        for event in generate(prompt.ids, cancel=cancel, **own):
            yield prompt.charge(event) if isinstance(event, Done) and not number else event

    return (partial(sample, number) for number in range(samples))


def run_many(
    generations: Iterable[Generate], threads: int, cancel: Cancel, options: dict[str, Any]
) -> Iterator[tuple[int, Event]]:
    """Pairs (index of the generation, event), at most `threads` generations at a time, taken as they start.

    Errors of a generation are raised here and end the others.
    """
    ready: queue.Queue[tuple[int, Event] | BaseException | None] = queue.Queue(_MAX_EVENTS_AHEAD)
    numbered, lock, closed = enumerate(generations), threading.Lock(), threading.Event()

    def put(item: tuple[int, Event] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            while not cancel.cancelled:
                with lock:
                    number, generate = next(numbered, (0, None))
                if generate is None:
                    break
                for event in generate(cancel=cancel, **options):
                    put((number, event))
        except Cancelled:  # while a prompt that samples share was computed: none of them has begun
            pass
        except BaseException as problem:
            put(problem)
        finally:
            put(None)

    with ThreadPoolExecutor(threads, "ouro-edge-many") as pool:
        for _ in range(threads):
            pool.submit(work)
        running = threads
        try:
            while running:
                item = ready.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            closed.set()
            if running:
                cancel.cancel()
