"""The async twins: the same events, an event loop that is never blocked, and an end at once when nobody waits."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import aclosing

import numpy as np
import pytest

import ouro_edge
from ouro_edge.errors import RequestError

PROMPT = [5, 17, 3]


@pytest.fixture(scope="module")
def model(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        yield loaded


def ids_of(events):
    return [event.id for event in events if isinstance(event, ouro_edge.Token)]


async def ticks(count):
    """Let everything else run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


def test_the_same_events_come(model):
    async def main():
        return [event async for event in model.agenerate(PROMPT, max_tokens=6, stop_ids=())]

    events = asyncio.run(main())
    assert ids_of(events) == ids_of(model.generate(PROMPT, max_tokens=6, stop_ids=()))
    assert isinstance(events[-1], ouro_edge.Done)


def test_chat_has_a_twin():
    messages = [{"role": "user", "content": "Ada likes Ben. Ada likes who?"}]
    with ouro_edge.load() as model:

        async def main():
            return [event async for event in model.achat(messages)][-1].text

        assert asyncio.run(main()) == [*model.chat(messages)][-1].text == "Ben"


def test_forward_score_and_embed_have_twins(model):
    async def main():
        return await asyncio.gather(
            model.aforward(PROMPT), model.ascore(PROMPT, top=1), model.aembed([PROMPT], exit=ouro_edge.FixedDepth(1))
        )

    forward, score, vectors = asyncio.run(main())
    assert np.allclose(forward.logits, model.forward(PROMPT).logits)
    assert score.top == model.score(PROMPT, top=1).top
    assert (vectors == model.embed([PROMPT], exit=ouro_edge.FixedDepth(1))).all()


def test_errors_come_at_the_first_await(model):
    async def main():
        events = model.agenerate([])
        with pytest.raises(RequestError, match="at least one token"):
            await anext(events)
        with pytest.raises(RequestError, match="exit is 3"):
            await model.aforward(PROMPT, exit=3)

    asyncio.run(main())


def test_the_event_loop_runs_while_a_block_call_does(model):
    async def main():
        lock = model.backend.lock
        with lock.hold():  # as if another conversation's call took very long
            task = asyncio.ensure_future(anext(model.agenerate(PROMPT, max_tokens=1, stop_ids=())))
            await until(lambda: lock.waiting == 1)
            await ticks(1000)
            assert not task.done()
        assert isinstance(await task, ouro_edge.Token)

    asyncio.run(main())


@pytest.mark.parametrize("call", ["agenerate", "aforward", "ascore", "aembed"])
def test_a_cancelled_task_ends_its_thread(model, call):
    async def main():
        lock = model.backend.lock
        with lock.hold():
            asked = getattr(model, call)([PROMPT] if call == "aembed" else PROMPT)
            task = asyncio.ensure_future(anext(asked) if inspect.isasyncgen(asked) else asked)
            await until(lambda: lock.waiting == 1)
            task.cancel()
            ended, _ = await asyncio.wait([task], timeout=30)
            assert ended and task.cancelled()
            assert lock.waiting == 0  # it has left the queue: nothing will be computed for nobody

    asyncio.run(main())
    assert len(list(model.generate(PROMPT, max_tokens=2, stop_ids=()))) == 3


def test_a_cancelled_generation_leaves_its_sequence_usable(model):
    async def main():
        sequence, seen = model.new_sequence(), []

        async def talk():
            async for event in model.agenerate(PROMPT, stop_ids=(), sequence=sequence):
                seen.append(event)

        task = asyncio.ensure_future(talk())
        await until(lambda: len(seen) >= 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return [event async for event in model.agenerate(PROMPT, max_tokens=8, stop_ids=(), sequence=sequence)]

    *tokens, done = asyncio.run(main())
    assert ids_of(tokens) == ids_of(model.generate(PROMPT, max_tokens=8, stop_ids=()))
    assert done.usage.cached_tokens == len(PROMPT) - 2


def test_a_closed_generator_computes_no_more(model):
    async def main():
        sequence = model.new_sequence()
        async with aclosing(model.agenerate(PROMPT, stop_ids=(), sequence=sequence)) as events:
            async for event in events:
                assert isinstance(event, ouro_edge.Token)
                break
        before = sequence.work.calls
        await ticks(100)
        assert sequence.work.calls == before
        await until(lambda: not any(thread.name.startswith("ouro-edge") for thread in threading.enumerate()))

    asyncio.run(main())


def test_nothing_runs_ahead_of_its_reader(model):
    async def main():
        sequence = model.new_sequence()
        events = model.agenerate(PROMPT, stop_ids=(), sequence=sequence, exit=ouro_edge.FixedDepth(1))
        async with aclosing(events):
            for _ in range(3):
                await anext(events)
            await ticks(1000)
            assert sequence.work.calls == 3

    asyncio.run(main())


def test_a_cancel_of_ones_own_works_and_outlives_a_normal_end(model):
    async def main():
        cancel = ouro_edge.Cancel()
        first = [e async for e in model.agenerate(PROMPT, max_tokens=2, stop_ids=(), cancel=cancel)]
        assert first[-1].reason == "length" and not cancel.cancelled
        seen = []
        async for event in model.agenerate(PROMPT, stop_ids=(), cancel=cancel):
            seen.append(event)
            cancel.cancel()
        assert [e.reason for e in seen[1:]] == ["cancelled"]

    asyncio.run(main())


def test_many_at_once_get_what_they_would_get_alone(model):
    prompts = [[i, i + 1, i + 2] for i in range(3, 9)]

    async def talk(prompt):
        return ids_of([e async for e in model.agenerate(prompt, max_tokens=8, stop_ids=())])

    async def main():
        return await asyncio.gather(*map(talk, prompts))

    assert asyncio.run(main()) == [ids_of(model.generate(p, max_tokens=8, stop_ids=())) for p in prompts]


def test_the_options_passed_on_are_those_of_generate():
    from ouro_edge.runtime.request import GenerateOptions

    parameters = list(inspect.signature(ouro_edge.Model.generate).parameters)
    assert set(parameters) - {"self", "prompt", "lens"} == set(GenerateOptions.__annotations__)


def test_stopping_at_the_end_leaves_the_callers_switch_alone(model):
    async def main():
        cancel = ouro_edge.Cancel()
        async with aclosing(model.agenerate(PROMPT, max_tokens=3, stop_ids=(), cancel=cancel)) as events:
            async for event in events:
                if isinstance(event, ouro_edge.Done):
                    break
        return cancel.cancelled

    assert asyncio.run(main()) is False


def test_many_prompts_have_a_twin(model):
    prompts, options = [[5, 17, 3], [9], [4, 4]], {"max_tokens": 5, "stop_ids": (), "samples": 2, "threads": 3}

    async def main():
        return [pair async for pair in model.agenerate_many(prompts, **options)]

    def gathered(pairs):
        return {number: ids_of(event for n, event in pairs if n == number) for number in range(6)}

    found = asyncio.run(main())
    assert gathered(found) == gathered(list(model.generate_many(prompts, **options)))
    assert sum(isinstance(event, ouro_edge.Done) for _, event in found) == 6


def test_leaving_many_prompts_ends_them_all(model):
    cancel, taken = ouro_edge.Cancel(), []

    def prompts():
        while True:
            taken.append(1)
            yield [5, 17, 3]

    async def main():
        async with aclosing(model.agenerate_many(prompts(), threads=2, stop_ids=(), cancel=cancel)) as pairs:
            await anext(pairs)
        assert cancel.cancelled

    asyncio.run(main())
    assert len(taken) <= 3 and not [t for t in threading.enumerate() if t.name.startswith("ouro-edge-many")]


def test_a_slow_reader_holds_many_prompts_back(model):
    taken = []

    def prompts():
        for _ in range(1000):
            taken.append(1)
            yield [5]

    async def main():
        async with aclosing(model.agenerate_many(prompts(), threads=2, stop_ids=(), max_tokens=3)) as pairs:
            await anext(pairs)
            await until(lambda: len(taken) > 60)
            await asyncio.sleep(0.05)
            assert len(taken) < 100  # 4 events each, 256 events ahead

    asyncio.run(main())


def test_errors_of_many_prompts_are_raised(model):
    async def main(prompts, **options):
        return [pair async for pair in model.agenerate_many(prompts, **options)]

    for prompts, options in (
        ([[5], [10**6]], {}),
        ([[5]], {"sequence": model.new_sequence()}),
        ([[5]], {"samples": 0}),
    ):
        with pytest.raises(RequestError):
            asyncio.run(main(prompts, **options))
