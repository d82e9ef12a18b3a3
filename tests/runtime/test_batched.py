"""Many groups in one call: the same states, caches and tokens as one after the other, whatever the company."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ouro_edge
from ouro_edge.fitting.calibrate_kv import calibrate

RNG = np.random.default_rng(5)
PROMPTS = [[int(i) for i in RNG.integers(3, 96, n)] for n in (7, 1, 12, 30, 5, 9, 3, 17)]


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def pair(request, bundle_of, checkpoint_of, tmp_path_factory):
    """A float32 model alone and for eight generations at once, with each type of KV cache."""
    import shutil

    path = shutil.copytree(bundle_of(checkpoint_of()), tmp_path_factory.mktemp("batched") / "model")
    calibrate(path)
    with (
        ouro_edge.load(path, kv=request.param) as alone,
        ouro_edge.load(path, kv=request.param, parallel=8) as together,
    ):
        yield alone, together


def loops_of(model, prompts, counts):
    """Sequences that have gone to different loops, by calls of one group."""
    sequences = []
    for prompt, count in zip(prompts, counts, strict=True):
        sequence = model.new_sequence()
        sequence.append(prompt)
        for loop in range(1, count + 1):
            sequence.advance(loop)
        sequences.append(sequence)
    return sequences


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_groups_in_one_call_equal_groups_one_by_one(pair, number):
    alone, together = pair
    counts = [i % 4 for i in range(number)]
    expected = []
    for sequence, count in zip(loops_of(alone, PROMPTS[:number], counts), counts, strict=True):
        group = sequence.pending(count + 1)
        (output,) = alone.backend.run([group])
        expected.append((output.states.copy(), output.gates.copy(), sequence.kv_of(count + 1).valid(len(sequence))))
    sequences = loops_of(together, PROMPTS[:number], counts)
    groups = [sequence.pending(count + 1) for sequence, count in zip(sequences, counts, strict=True)]
    outputs = together.backend.run(groups)
    for i, (states, gates, cache) in enumerate(expected):
        np.testing.assert_allclose(outputs[i].states, states, atol=2e-5)
        np.testing.assert_allclose(outputs[i].gates, gates, atol=2e-5)
        for mine, its in zip(sequences[i].kv_of(counts[i] + 1).valid(len(sequences[i])), cache, strict=True):
            if mine.dtype == np.float32:
                np.testing.assert_allclose(mine, its, atol=2e-5)
            else:
                assert (mine != its).mean() < 0.01
        sequences[i].commit(counts[i] + 1, groups[i], outputs[i])


def test_calls_of_changing_company_leave_caches_intact(pair):
    """Slots are bound to other caches from call to call; the caches that are not in a call must not change."""
    alone, together = pair
    finals = []
    for model in (alone, together):
        sequences = loops_of(model, PROMPTS, [0] * len(PROMPTS))
        rng = np.random.default_rng(1)
        for _ in range(25):
            chosen = [i for i in range(len(sequences)) if rng.random() < 0.6]
            pending = []
            for i in chosen:
                loop = 1 + int(rng.integers(4))
                if (group := sequences[i].pending(loop)) is None:
                    sequences[i].append([int(rng.integers(3, 96))])
                    loop, group = 1, sequences[i].pending(1)
                if group is not None:
                    pending.append((sequences[i], loop, group))
            if pending:
                outputs = model.backend.run([group for _, _, group in pending])
                for (sequence, loop, group), output in zip(pending, outputs, strict=True):
                    sequence.commit(loop, group, output)
        states = []
        for sequence in sequences:
            sequence.append([7])
            states.append(sequence.run_until_exit(ouro_edge.FullDepth()).hidden[0])
        finals.append(np.array(states))
    np.testing.assert_allclose(finals[1], finals[0], atol=1e-4 if alone.kv == "fp32" else 0.05)


def test_tokens_do_not_depend_on_company(pair):
    alone, together = pair
    if alone.kv != "fp32":
        pytest.skip("rows are rounded to a quantised cache, where a last bit may differ")
    exits = [ouro_edge.FullDepth(), ouro_edge.ExitThreshold(0.5), ouro_edge.FixedDepth(2), ouro_edge.Agreement()]

    def answer(model, i):
        sampler = ouro_edge.Sampler(temperature=0.8, seed=i) if i % 2 else ouro_edge.Sampler()
        events = model.generate(PROMPTS[i], max_tokens=24, exit=exits[i % 4], sampler=sampler, stop_ids=())
        return [(event.id, event.depth) for event in list(events)[:-1]]

    expected = [answer(alone, i) for i in range(len(PROMPTS))]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda i: answer(together, i), range(len(PROMPTS)))) == expected


def test_a_cancelled_generation_leaves_and_the_others_go_on(pair):
    alone, together = pair
    expected = [e.id for e in list(alone.generate(PROMPTS[0], max_tokens=30, stop_ids=()))[:-1]]
    cancel, found = ouro_edge.Cancel(), {}

    def run(name, **options):
        found[name] = list(together.generate(PROMPTS[0], stop_ids=(), **options))

    threads = [
        threading.Thread(target=run, args=("stopped",), kwargs={"cancel": cancel}),
        threading.Thread(target=run, args=("other",), kwargs={"max_tokens": 30}),
    ]
    for thread in threads:
        thread.start()
    cancel.cancel()
    for thread in threads:
        thread.join(60)
    assert found["stopped"][-1].reason == "cancelled"
    if alone.kv == "fp32":
        assert [event.id for event in found["other"][:-1]] == expected
    assert len(found["other"]) == 31


def test_an_error_in_one_submission_ends_no_other(pair):
    _, together = pair
    with pytest.raises(ouro_edge.RequestError):
        together.generate(PROMPTS[0], max_tokens=0)
    assert len(list(together.generate(PROMPTS[0], max_tokens=3, stop_ids=()))) == 4


def test_many_prompts_give_the_events_of_each(pair):
    alone, together = pair
    expected = [[e.id for e in list(alone.generate(p, max_tokens=6, stop_ids=()))[:-1]] for p in PROMPTS]
    found, ends = [[] for _ in PROMPTS], []
    for number, event in together.generate_many(iter(PROMPTS), max_tokens=6, stop_ids=()):
        if isinstance(event, ouro_edge.Token):
            found[number].append(event.id)
        else:
            ends.append(number)
    assert sorted(ends) == list(range(len(PROMPTS))) and [len(ids) for ids in found] == [6] * len(PROMPTS)
    if alone.kv == "fp32":
        assert found == expected


def test_many_prompts_can_be_left_early_and_errors_are_raised(pair):
    _, together = pair
    events = together.generate_many([[5, 6]] * 20, stop_ids=())
    next(events)
    events.close()  # returns, and nothing goes on
    with pytest.raises(ouro_edge.RequestError, match="vocabulary"):
        list(together.generate_many([[5], [10**6]], max_tokens=2, stop_ids=()))
    with pytest.raises(ouro_edge.RequestError, match="sequence belongs to one answer"):
        together.generate_many([[5]], sequence=together.new_sequence())
    with pytest.raises(ouro_edge.RequestError, match="parallel"):
        ouro_edge.load(parallel=0)


def buffers_of(sequence):
    """Weak references to the KV buffers of the first loop."""
    return [weakref.ref(view.base) for view in sequence.kv_of(1).valid(len(sequence))]


def test_a_call_of_many_groups_keeps_no_old_buffers(pair, monkeypatch):
    _, model = pair
    sequences = loops_of(model, PROMPTS[:4], [0] * 4)
    model.backend.run([sequence.pending(1) for sequence in sequences])
    growing, dropped = buffers_of(sequences[0]), [ref for sequence in sequences[1:] for ref in buffers_of(sequence)]
    assert all(ref() is not None for ref in growing + dropped)

    sequences[0].append([5] * 100)  # more than the first buffers have room for
    alive = []
    queue = model.backend._shared._queue
    block = queue.block
    monkeypatch.setattr(queue, "block", lambda *a: (alive.extend(ref() is not None for ref in growing), block(*a))[1])
    model.backend.run([sequences[0].pending(1)])
    assert alive and not any(alive)  # free before the call, when only the new buffers are there

    del sequences[1:]
    model.backend.run([sequences[0].pending(1)])
    assert not any(ref() is not None for ref in dropped)


def sampled(events, samples):
    """Ids, depths and ends of every sample."""
    tokens, ends = [[] for _ in range(samples)], {}
    for number, event in events:
        if isinstance(event, ouro_edge.Token):
            tokens[number].append((event.id, event.depth))
        else:
            ends[number] = event
    return tokens, ends


@pytest.mark.parametrize(
    "exit", [ouro_edge.FullDepth(), ouro_edge.ExitThreshold(0.5), ouro_edge.LoopBudget(2.5), ouro_edge.FixedDepth(2)]
)
def test_samples_of_a_prompt_are_those_of_generations_alone(pair, exit):
    alone, together = pair
    if alone.kv != "fp32":
        pytest.skip("rows are rounded to a quantised cache, where a last bit may differ")
    options = {"max_tokens": 12, "exit": exit, "stop_ids": ()}
    expected = []
    for prompt in (PROMPTS[3], PROMPTS[1]):  # the second has one token, so nothing of it can be shared
        for sample in range(3):
            sampler = ouro_edge.Sampler(temperature=1.5, seed=7 + sample)
            *tokens, _ = alone.generate(prompt, sampler=sampler, **options)
            expected.append([(token.id, token.depth) for token in tokens])
    sampler = ouro_edge.Sampler(temperature=1.5, seed=7)
    events = together.generate_many([PROMPTS[3], PROMPTS[1]], samples=3, sampler=sampler, **options)
    tokens, ends = sampled(events, 6)
    assert tokens == expected and len({tuple(ids) for ids in tokens}) == 6
    assert sorted(ends) == list(range(6))


def test_samples_compute_their_prompt_once(pair):
    _, model = pair
    prompt, samples = PROMPTS[3], 4
    events = model.generate_many([prompt], samples=samples, max_tokens=3, exit=ouro_edge.FullDepth(), stop_ids=())
    _, ends = sampled(events, samples)
    usages = [ends[number].usage for number in range(samples)]
    assert [usage.cached_tokens for usage in usages] == [0] + [len(prompt) - 2] * 3
    assert [usage.loops_run for usage in usages] == [4 * (len(prompt) + 2)] + [4 * (2 + 2)] * 3
    assert all(usage.loops_saved == 0 for usage in usages)


def test_samples_with_a_shared_kv_cache(bundle_of, checkpoint_of):
    with ouro_edge.load(bundle_of(checkpoint_of()), kv="fp32", kv_share="last", parallel=4) as model:
        sampler = ouro_edge.Sampler(temperature=1.5, seed=7)
        options = {"max_tokens": 8, "exit": ouro_edge.FixedDepth(3), "stop_ids": ()}
        tokens, _ = sampled(model.generate_many([PROMPTS[3]], samples=2, sampler=sampler, **options), 2)
        for sample in range(2):
            *expected, _ = model.generate(PROMPTS[3], sampler=sampler.for_sample(sample), **options)
            assert tokens[sample] == [(token.id, token.depth) for token in expected]


def test_samples_that_are_cancelled_while_the_prompt_is_computed(pair):
    _, model = pair
    cancel = ouro_edge.Cancel()
    cancel.cancel()
    assert list(model.generate_many([PROMPTS[3]], samples=3, cancel=cancel)) == []
    for wrong in (0, 1.5, None):
        with pytest.raises(ouro_edge.RequestError, match="samples"):
            model.generate_many([PROMPTS[3]], samples=wrong)


def test_too_many_generations_for_the_memory_are_refused(bundle_of, checkpoint_of, monkeypatch):
    from ouro_edge.runtime.backend import admission

    path = bundle_of(checkpoint_of())
    each = 512 * 4 * 2 * 2 * 2 * 16 * 4  # tokens, loops, layers, key and value, heads, width, bytes
    monkeypatch.setattr(admission, "available_memory", lambda: 6 * each)
    with ouro_edge.load(path, kv="fp32", parallel=6):
        pass
    with pytest.raises(ouro_edge.RequestError, match=r"7 generations at once of 512 tokens need .* use --parallel 6"):
        ouro_edge.load(path, kv="fp32", parallel=7)
    with ouro_edge.load(path, kv="fp32", parallel=7, context=400):
        pass
