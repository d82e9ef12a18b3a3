"""All backends compute the same, a scripted one follows its script, and the two halves of `advance` are safe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import oracle

import ouro_edge
from ouro_edge.arch.loop_program import LoopPass, LoopProgram, Stack, loop_program
from ouro_edge.errors import RequestError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.backend.protocol import GroupOutput
from ouro_edge.runtime.backend.reference_backend import ReferenceBackend
from ouro_edge.runtime.backend.scripted_backend import ScriptedBackend
from ouro_edge.runtime.sequence.shared_kv import new_sequence
from ouro_edge.runtime.speculation.draft_policy import DraftPolicy
from ouro_edge.testing import MeteredBackend

PROMPT = [5, 17, 3, 88, 41, 41, 7]


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of):
    return checkpoint_of()


def reference_model(checkpoint, **options):
    opened = open_checkpoint(checkpoint)
    weights = {name: opened.weights.rows(name, 0, opened.weights.shapes[name][0]) for name in opened.weights}
    weights.setdefault("head", weights["embedding"])
    return ouro_edge.Model(ReferenceBackend(opened.config, weights, **options))


def test_the_reference_backend_is_the_reference(checkpoint):
    model = reference_model(checkpoint)
    logits, steps = oracle(checkpoint, PROMPT)
    found = model.states(PROMPT)
    np.testing.assert_allclose(found.hidden, steps.hidden, atol=1e-5)
    np.testing.assert_allclose(found.gate_logits, steps.gate_logits, atol=1e-5)
    np.testing.assert_allclose(model.forward(PROMPT).logits, logits[-1], atol=1e-4)


@pytest.mark.parametrize("exit", [ouro_edge.FullDepth(), ouro_edge.ExitThreshold(0.5), ouro_edge.Agreement()])
@pytest.mark.parametrize("share", [False, True])
def test_reference_and_onnxruntime_generate_the_same(checkpoint, bundle_of, exit, share):
    reference = reference_model(checkpoint, share_kv=share)
    with ouro_edge.load(bundle_of(checkpoint), kv="fp32", kv_share="last" if share else "none") as model:
        for each in (0, 1):
            answers = [
                [(t.id, t.depth) for t in list(m.generate(PROMPT[each:], max_tokens=8, exit=exit, stop_ids=()))[:-1]]
                for m in (reference, model)
            ]
            assert answers[0] == answers[1]


def test_a_state_moves_between_sequences_of_the_reference(checkpoint):
    model = reference_model(checkpoint)
    sequence = model.new_sequence()
    list(model.generate(PROMPT, max_tokens=4, exit=ouro_edge.FixedDepth(2), stop_ids=(), sequence=sequence))
    copy = sequence.copy_prefix(5)
    assert copy.frontier == [5, 5, 5, 0, 0]
    copy.append(PROMPT[5:])
    states = copy.run_until_exit(ouro_edge.FullDepth())
    _, steps = oracle(model_checkpoint := checkpoint, PROMPT)
    assert model_checkpoint and np.allclose(states.hidden[0], steps.hidden[-1, -1], atol=1e-4)


def test_groups_of_several_sequences_and_loops_are_one_call(checkpoint, bundle_of):
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        first, second = model.new_sequence(), model.new_sequence()
        first.append(PROMPT)
        second.append(PROMPT[::-1])
        first.advance(1)
        groups = [first.pending(2), second.pending(1, upto=3)]
        assert [(len(group.rows), group.start) for group in groups] == [(7, 0), (3, 0)]
        outputs = model.backend.run(groups)
        first.commit(2, groups[0], outputs[0])
        second.commit(1, groups[1], outputs[1])
        assert (first.frontier, second.frontier) == ([7, 7, 7, 0, 0], [7, 3, 0, 0, 0])
        _, steps = oracle(checkpoint, PROMPT)
        np.testing.assert_allclose(outputs[0].states, steps.hidden[1], atol=1e-3)


def test_a_group_of_the_past_is_refused(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        sequence = model.new_sequence()
        sequence.append(PROMPT)
        group = sequence.pending(1)
        output = GroupOutput(np.zeros_like(group.rows), np.zeros(len(group.rows), np.float32))
        sequence.truncate(4)
        with pytest.raises(RequestError, match="take a new one"):
            sequence.commit(1, group, output)
        sequence.truncate(0)
        sequence.append(PROMPT[::-1])  # other tokens at the same positions
        with pytest.raises(RequestError, match="take a new one"):
            sequence.commit(1, group, output)
        sequence.truncate(4)
        sequence.advance(1)
        with pytest.raises(RequestError, match="take a new one"):
            sequence.commit(1, group, output)
        assert sequence.pending(1) is None and sequence.frontier == [4, 4, 0, 0, 0]


def test_a_script_is_followed_at_its_depths():
    def script(ids, count):
        return int(ids[count - 1]) + 1, 1 + int(ids[count - 1]) % 3

    config = replace(ouro_edge.load(None).config, max_positions=100)
    backend = ScriptedBackend(config, script)
    model = ouro_edge.Model(backend)
    *tokens, done = model.generate([3, 4], max_tokens=5, exit=ouro_edge.ExitThreshold(0.5))
    assert [(token.id, token.depth) for token in tokens] == [(5, 2), (6, 3), (7, 1), (8, 2), (9, 3)]
    assert done.usage.loops_run == backend.rows and done.usage.block_calls == backend.calls
    drafted = list(model.generate([3, 4], max_tokens=5, exit=ouro_edge.ExitThreshold(0.5), speculate=True))
    assert [token.id for token in drafted[:-1]] == [5, 6, 7, 8, 9]


def test_a_metered_model_is_the_same_model(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        meter = MeteredBackend(model.backend)
        found = ouro_edge.Model(meter, model.text).forward(PROMPT)
        np.testing.assert_array_equal(found.logits, model.forward(PROMPT).logits)
        assert (meter.block_rows, meter.head_rows) == ([7] * 4, [7])


def test_programs_say_which_cache_a_pass_uses(checkpoint):
    config = open_checkpoint(checkpoint).config
    assert loop_program(config) == LoopProgram(
        tuple(LoopPass("block", i) for i in range(4)), config.hidden_size, (Stack("block", range(2)),)
    )
    shared = loop_program(config, share_kv=True)
    assert (shared.num_caches, shared.shares_caches) == (1, True)
    assert new_sequence(ReferenceBackend(config, {}, share_kv=True)).kv_share == "last"


def test_a_token_exits_only_after_a_pass_that_allows_it():
    """A program whose second and last pass may exit: rules that would stop earlier stop there."""
    config = replace(ouro_edge.load(None).config, max_positions=100)
    backend = ScriptedBackend(config, lambda ids, count: (int(ids[count - 1]) + 1, 1))
    allowed = (False, True, False, True)
    passes = zip(backend.program.passes, allowed, strict=True)
    backend.program = replace(backend.program, passes=tuple(replace(step, may_exit=may) for step, may in passes))
    model = ouro_edge.Model(backend)
    for exit, depth in ((ouro_edge.ExitThreshold(0.5), 2), (ouro_edge.FixedDepth(1), 2), (ouro_edge.FixedDepth(3), 4)):
        *tokens, _ = model.generate([3, 4], max_tokens=3, exit=exit, speculate=False)
        assert [token.depth for token in tokens] == [depth] * 3
        assert model.forward([3, 4, 5], exit=exit).depth.tolist() == [depth] * 3


def test_a_shared_cache_and_traces_honour_where_a_program_may_exit(bundle_of):
    with ouro_edge.load(bundle_of(), kv_share="last") as shared, ouro_edge.load(bundle_of()) as model:
        for each in (shared, model):
            program = each.backend.program
            passes = tuple(replace(step, may_exit=i % 2 == 1) for i, step in enumerate(program.passes))
            each.backend.program = replace(program, passes=passes)
            sequence = each.new_sequence()
            sequence.append(PROMPT)
            assert sequence.run_until_exit(ouro_edge.FixedDepth(1)).loop == 2
            traced = ouro_edge.trace(each, PROMPT, exit=ouro_edge.FixedDepth(1))
            assert {token.depth for token in traced} == {2}


def test_a_draft_policy_for_another_model_is_refused(bundle_of):
    with ouro_edge.load(bundle_of()) as model, pytest.raises(RequestError, match="is for 2 loops"):
        model.generate(PROMPT, speculate=DraftPolicy(2))


def test_rules_that_look_at_logits_hold_them_for_few_positions_at_a_time(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        meter = MeteredBackend(loaded.backend)
        model = ouro_edge.Model(meter, loaded.text)
        model.forward([5, 6] * 150, exit=ouro_edge.ConfidenceThreshold(1.0))
        assert max(meter.head_rows[:-2]) <= 128
        ouro_edge.trace(model, [5, 6] * 150, exit=ouro_edge.ConfidenceThreshold(1.0))
