"""What must hold of every sequence, whatever the model: frontiers, laziness, exactness. Counts are asserted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import oracle

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.runtime.backend.kv import kv_bytes_per_token
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth

PROMPT = [5, 17, 3, 88, 41, 41, 7, 60, 12, 33, 2, 0, 95, 11]


@pytest.fixture(scope="module", params=["grouped heads", "tied, one loop", "wide heads, three loops"])
def pair(request, checkpoint_of, bundle_of):
    """A checkpoint and its float32 model."""
    changes = {
        "grouped heads": {},
        "tied, one loop": {"total_ut_steps": 1, "tie_word_embeddings": True, "num_key_value_heads": 4},
        "wide heads, three loops": {"total_ut_steps": 3, "head_dim": 24, "num_key_value_heads": 1, "seed": 3},
    }[request.param]
    checkpoint = checkpoint_of(**changes)
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        yield checkpoint, model


def test_forward_equals_the_reference_at_every_depth(pair):
    checkpoint, model = pair
    logits, _ = oracle(checkpoint, PROMPT)
    for depth in range(1, model.config.loops + 1):
        np.testing.assert_allclose(model.forward(PROMPT, exit=FixedDepth(depth)).logits, logits[depth - 1], atol=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 0.95, 1.0])
def test_threshold_equals_full_depth_then_select(pair, threshold):
    checkpoint, model = pair
    logits, steps = oracle(checkpoint, PROMPT)
    depths = reference.exit_depths(steps.gate_logits, threshold)
    out = model.forward(PROMPT, exit=ExitThreshold(threshold))
    assert out.depth.tolist() == depths.tolist()
    np.testing.assert_allclose(out.logits, logits[depths - 1, np.arange(len(PROMPT))], atol=1e-3)


def test_prefill_equals_single_steps(pair):
    _, model = pair
    at_once, step_by_step = model.new_sequence(), model.new_sequence()
    at_once.append(PROMPT)
    for token in PROMPT:
        step_by_step.append([token])
        last = step_by_step.run_until_exit(FullDepth())
    np.testing.assert_allclose(at_once.run_until_exit(FullDepth()).hidden, last.hidden, atol=1e-4)
    assert at_once.frontier == step_by_step.frontier
    assert at_once.work.rows == step_by_step.work.rows == len(PROMPT) * model.config.loops
    assert at_once.work.calls == model.config.loops
    assert step_by_step.work.calls == len(PROMPT) * model.config.loops


def test_long_prompts_go_in_chunks(pair, monkeypatch):
    _, model = pair
    whole, parts = model.new_sequence(), model.new_sequence()
    whole.append(PROMPT)
    parts.append(PROMPT)
    wanted = whole.run_until_exit(FullDepth()).hidden
    monkeypatch.setattr(model.backend, "rows_per_call", 5)
    np.testing.assert_allclose(parts.run_until_exit(FullDepth()).hidden, wanted, atol=1e-4)
    assert parts.work.calls == 3 * model.config.loops


def test_early_exit_runs_only_the_loops_that_are_asked_for(pair):
    checkpoint, model = pair
    ids = list(PROMPT)
    sequence = model.new_sequence()
    sequence.append(ids)
    deepest = 0
    for _ in range(12):
        before = sequence.work.calls
        states = sequence.run_until_exit(ExitThreshold(0.6))
        logits, steps = oracle(checkpoint, ids)
        depth = int(reference.exit_depths(steps.gate_logits, 0.6)[-1])
        assert states.loop == depth
        assert sequence.work.calls - before == depth  # one call a loop, however many positions waited
        np.testing.assert_allclose(states.hidden[0], steps.hidden[depth - 1, -1], atol=1e-3)
        deepest = max(deepest, depth)
        ids.append(int(logits[depth - 1, -1].argmax()))
        sequence.append(ids[-1:])
    full = len(PROMPT) + 11
    assert sequence.work.rows <= full * model.config.loops
    assert sequence.frontier[1] == full
    assert all(at == 0 for at in sequence.frontier[deepest + 1 :])


def test_positions_that_stopped_early_are_caught_up_in_one_call(checkpoint_of, bundle_of):
    checkpoint = checkpoint_of()
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        sequence = model.new_sequence()
        for token in PROMPT:
            sequence.append([token])
            sequence.run_until_exit(FixedDepth(1))
        assert sequence.frontier == [14, 14, 0, 0, 0]
        calls = sequence.work.calls
        sequence.append([9])
        hidden = sequence.run_until_exit(FixedDepth(3)).hidden[0]
        assert sequence.work.calls - calls == 3
        assert sequence.frontier == [15, 15, 15, 15, 0]
        _, steps = oracle(checkpoint, [*PROMPT, 9])
        np.testing.assert_allclose(hidden, steps.hidden[2, -1], atol=1e-3)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_history_equals_a_fresh_run(checkpoint_of, bundle_of, data):
    """Feed, think at any depth and rewind at random: the state is as if only the final tokens had ever been fed."""
    checkpoint = checkpoint_of()
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        sequence = model.new_sequence()
        processed: dict[tuple[int, int], int] = {}
        for _ in range(data.draw(st.integers(1, 8))):
            tokens = data.draw(st.lists(st.integers(0, 95), min_size=1, max_size=6))
            before = list(sequence.frontier)
            sequence.append(tokens)
            policy = data.draw(st.sampled_from([FullDepth(), FixedDepth(1), FixedDepth(3), ExitThreshold(0.5)]))
            states = sequence.run_until_exit(policy)
            for loop in range(1, 5):
                for position in range(before[loop], sequence.frontier[loop]):
                    processed[loop, position] = processed.get((loop, position), 0) + 1
            _, steps = oracle(checkpoint, sequence.tokens)
            np.testing.assert_allclose(states.hidden[0], steps.hidden[states.loop - 1, -1], atol=1e-3)
            assert all(a >= b for a, b in zip(sequence.frontier, sequence.frontier[1:], strict=False))
            length = data.draw(st.integers(0, len(sequence)))
            sequence.truncate(length)
            processed = {key: count for key, count in processed.items() if key[1] < length}
        assert max(processed.values(), default=1) == 1  # no position twice in a loop


def test_generation_keeps_a_common_prefix(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        sequence = model.new_sequence()
        first = list(model.generate(PROMPT, max_tokens=6, sequence=sequence, stop_ids=()))
        assert first[-1].usage.cached_tokens == 0
        history = [*PROMPT, *(event.id for event in first[:-1]), 7, 8, 9]
        rows = sequence.work.rows
        second = list(model.generate(history, max_tokens=4, sequence=sequence, stop_ids=()))
        assert second[-1].usage.cached_tokens == len(PROMPT) + 5  # the last token of an answer was never fed
        assert sequence.work.rows - rows == second[-1].usage.loops_run == 4 * (4 + 3)
        fresh = list(model.generate(history, max_tokens=4, stop_ids=()))
        assert [e.id for e in fresh[:-1]] == [e.id for e in second[:-1]]


def test_memory_follows_use(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        sequence = model.new_sequence()
        assert sequence.kv_bytes == 0
        sequence.append(PROMPT)
        sequence.run_until_exit(FixedDepth(1))
        one_loop = sequence.kv_bytes
        assert 0 < one_loop < kv_bytes_per_token(model.config, "fp32") * 100 / 4
        sequence.append([1])
        sequence.run_until_exit(FixedDepth(2))
        assert sequence.kv_bytes == 2 * one_loop
        sequence.append(list(range(200)))
        sequence.run_until_exit(FullDepth())
        assert sequence.kv_bytes <= kv_bytes_per_token(model.config, "fp32") * 1.5 * len(sequence)
