"""Many prompts at once on one model: a thread per running generation, events as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Event

_MAX_EVENTS_AHEAD = 256  # a slow reader holds the generations back
_OF_ONE_ANSWER = ("sequence", "constraint")


def run_many(
    generate: Callable[..., Iterator[Event]], prompts: Iterable[Any], threads: int, options: dict[str, Any]
) -> Iterator[tuple[int, Event]]:
    """Pairs (index of the prompt, event), at most `threads` generations at a time; prompts are taken as they start.

    Errors of a generation are raised here and end the others. RequestError for options that belong to one answer.
    """
    for name in _OF_ONE_ANSWER:
        if options.get(name) is not None:
            raise RequestError(f"{name} belongs to one answer: use generate")
    return _events(generate, prompts, threads, options.pop("cancel", None) or Cancel(), options)


def _events(
    generate: Callable[..., Iterator[Event]],
    prompts: Iterable[Any],
    threads: int,
    cancel: Cancel,
    options: dict[str, Any],
) -> Iterator[tuple[int, Event]]:
    ready: queue.Queue[tuple[int, Event] | BaseException | None] = queue.Queue(_MAX_EVENTS_AHEAD)
    numbered, lock, closed = enumerate(prompts), threading.Lock(), threading.Event()

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
                    number, prompt = next(numbered, (None, None))
                if number is None:
                    break
                for event in generate(prompt, cancel=cancel, **options):
                    put((number, event))
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
