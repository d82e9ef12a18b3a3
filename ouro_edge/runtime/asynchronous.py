"""Async versions of a model's calls: each runs in a separate thread and does not block the event loop.

An event is computed when the reader requests it, so a slow reader delays the generation. When the waiting task is
cancelled or the generator is closed, the Cancel of the call is fired immediately. The call then waits for the end of
the work, which takes at most a part of a block call; after that the sequence can be used again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, Unpack

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.async_bridge import call, iterate
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done, Event
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward import Forward, Score
from ouro_edge.runtime.request import GenerateOptions
from ouro_edge.runtime.sequence.sequence import TokenSequence

T = TypeVar("T")


class _Blocking(Protocol):
    """The blocking calls that have an async version."""

    def generate(self, *args: Any, **options: Any) -> Iterator[Event]: ...
    def chat(self, *args: Any, **options: Any) -> Iterator[Event]: ...
    def generate_many(self, *args: Any, **options: Any) -> Iterator[tuple[int, Event]]: ...
    def forward(self, *args: Any, **options: Any) -> Forward: ...
    def score(self, *args: Any, **options: Any) -> Score: ...
    def embed(self, *args: Any, **options: Any) -> Array: ...


class AsyncTwins:
    """Async versions of a model's calls: same arguments, events and errors (raised at the first await)."""

    def agenerate(
        self: _Blocking, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """`generate` as an async generator. To stop early, call `aclose` or cancel the task that waits for it."""
        return _stream(self.generate, prompt, **options)

    def achat(
        self: _Blocking,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Event, None]:
        """`chat` as an async generator."""
        return _stream(self.chat, messages, template=template, **options)

    def agenerate_many(
        self: _Blocking,
        prompts: Iterable[str | Iterable[int]],
        *,
        samples: int = 1,
        threads: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """`generate_many` as an async generator; `prompts` is read in worker threads.

        A slow reader holds the generations back after at most a few hundred events. Leaving early ends all of them.
        """
        return _stream(self.generate_many, prompts, samples=samples, threads=threads, **options)

    async def aforward(self: _Blocking, ids: Sequence[int], *, exit: ExitPolicy | None = None) -> Forward:
        """`forward`, without blocking."""
        return await _call(self.forward, ids, exit=exit)

    async def ascore(
        self: _Blocking,
        ids: Sequence[int],
        *,
        exit: ExitPolicy | None = None,
        top: int = 0,
        sequence: TokenSequence | None = None,
    ) -> Score:
        """`score`, without blocking."""
        return await _call(self.score, ids, exit=exit, top=top, sequence=sequence)

    async def aembed(
        self: _Blocking, texts: str | Sequence[str | Sequence[int]], *, exit: ExitPolicy | None = None
    ) -> Array:
        """`embed`, without blocking."""
        return await _call(self.embed, texts, exit=exit)


def _stream(
    generate: Callable[..., Iterator[T]], *args: Any, cancel: Cancel | None = None, **options: Any
) -> AsyncGenerator[T, None]:
    cancel = cancel or Cancel()
    events = partial(generate, *args, cancel=cancel, **options)
    return iterate(events, cancel, is_last=lambda event: isinstance(event, Done))


async def _call(function: Callable[..., T], *args: Any, **options: Any) -> T:
    cancel = Cancel()
    return await call(partial(function, *args, cancel=cancel, **options), cancel)
