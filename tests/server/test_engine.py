"""The engine without HTTP: the order of what it yields, and how far generations run ahead of their readers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import ouro_edge
from ouro_edge.server.engine import Engine, GenerationJob, Started
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import Limits
from ouro_edge.server.options import read_options


class Counted:
    """A model that counts the events it has computed; all else is the model's own."""

    def __init__(self, model: ouro_edge.Model) -> None:
        self._model = model
        self.events = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *args: Any, **options: Any) -> Iterator[ouro_edge.Event]:
        for event in self._model.generate(*args, **options):
            self.events += 1
            yield event


def job(model: ouro_edge.Model, most: int, **fields: Any) -> GenerationJob:
    options = read_options(Fields(fields, ""), model, model.default_exit())
    return GenerationJob(ids=tuple(model.tokenizer.encode("hello")), options=options, max_tokens=most)


def test_a_slot_comes_first_and_then_the_events_of_every_answer(nano: ouro_edge.Model) -> None:
    async def main() -> list[Any]:
        engine = Engine(nano, Limits())
        items = [item async for item in engine.generate([job(nano, 3, n=2), job(nano, 2)])]
        assert engine.queue.running == 0
        engine.close()
        return items

    first, *items = asyncio.run(main())
    assert isinstance(first, Started)
    for answer in range(3):
        events = [event for number, event in items if number == answer]
        assert [isinstance(event, ouro_edge.Done) for event in events] == [False] * (len(events) - 1) + [True]
    assert {number for number, _ in items} == {0, 1, 2}


def test_a_slow_reader_holds_the_generation_back(nano: ouro_edge.Model, endless: dict[str, Any]) -> None:
    """Nothing piles up between the model and a client, but a few events are computed while the last one is sent."""
    model = Counted(nano)

    async def main() -> None:
        engine = Engine(model, Limits(parallel=1))
        async with aclosing(engine.generate([job(nano, 100, **endless)])) as items:
            assert isinstance(await anext(items), Started) and model.events == 0
            for seen in range(1, 4):
                await anext(items)
                while model.events <= seen:
                    await asyncio.sleep(0.001)
                for _ in range(1000):  # time for more, which must not come
                    await asyncio.sleep(0)
                assert model.events <= seen + 8
        assert engine.queue.running == 0
        engine.close()

    asyncio.run(main())
    assert model.events < 20


def test_answers_use_free_slots_and_leave_them_to_requests_that_wait(nano: ouro_edge.Model) -> None:
    async def main() -> None:
        engine = Engine(nano, Limits(parallel=3))
        order: list[str] = []

        async def second() -> None:
            async with aclosing(engine.generate([job(nano, 2)])) as items:
                assert isinstance(await anext(items), Started)
                order.append("second")

        async with aclosing(engine.generate([job(nano, 8, n=9)])) as items:
            assert isinstance(await anext(items), Started) and engine.queue.running == 1
            await anext(items)
            assert engine.queue.running == 3
            waiting = asyncio.create_task(second())
            async for _, event in items:
                if isinstance(event, ouro_edge.Done):
                    order.append("answer")
            assert "second" in order[:5] and order.count("answer") == 9
            await waiting
        assert engine.queue.running == 0
        engine.close()

    asyncio.run(main())


def test_leaving_early_ends_all_answers_of_a_request(nano: ouro_edge.Model, endless: dict[str, Any]) -> None:
    async def main() -> None:
        engine = Engine(nano, Limits(parallel=3))
        async with aclosing(engine.generate([job(nano, 100, n=5, **endless)])) as items:
            assert isinstance(await anext(items), Started)
            seen = {(await anext(items))[0] for _ in range(20)}
            assert len(seen) > 1 and engine.queue.running == 3
        assert engine.queue.running == 0
        engine.close()

    asyncio.run(main())
