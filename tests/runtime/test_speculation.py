"""Speculation changes nothing of an answer: whatever is drafted, sampled, cut short or looked at. Counts, no times."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import hf_config, hf_tensors
from safetensors.numpy import save_file
from sampling import distribution

import ouro_edge
from ouro_edge.cli import main
from ouro_edge.runtime.speculation.decoder import SpeculativeDecoder
from ouro_edge.runtime.speculation.draft_policy import DraftPlan, DraftPolicy

PROMPT = [5, 17, 3, 88, 41, 41, 7]
SHARES = st.floats(0.0, 1.0)
POLICIES = st.one_of(
    st.just(ouro_edge.FullDepth()),
    st.builds(ouro_edge.FixedDepth, st.integers(1, 4)),
    st.just(ouro_edge.ExpectedLogits()),
    st.builds(
        ouro_edge.ExitThreshold, threshold=SHARES, floor=st.integers(1, 2), ceiling=st.sampled_from([None, 2, 3])
    ),
    st.builds(ouro_edge.StateChange, share=st.floats(0.0, 1.0)),
    st.builds(ouro_edge.ConfidenceThreshold, probability=SHARES),
    st.builds(ouro_edge.EntropyThreshold, nats=st.floats(0.0, 4.0)),
    st.builds(ouro_edge.Agreement),
)
SAMPLERS = st.builds(
    ouro_edge.Sampler,
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    logit_bias=st.sampled_from([{}, {7: 2.0, 8: -float("inf")}]),
    seed=st.integers(0, 99),
)


class Scripted(DraftPolicy):
    """A plan that takes each round's draft from a list, again and again, and goes on from every guess."""

    def __init__(self, *drafts, **options):
        super().__init__(4, forced=True, **options)
        self.drafts = itertools.cycle(drafts)

    def choose(self, limit):
        draft = next(self.drafts)
        return DraftPlan(min(draft.depth, limit), draft.rows)

    def is_confident(self, probability):
        return True


def checkpoint(path, step, **changes):
    """A random checkpoint whose loops change the state by about this share: with a small one drafts are often right."""
    config = hf_config(**changes)
    tensors = hf_tensors(config, seed=4)
    for name in tensors:
        if name.endswith("layernorm_2.weight"):
            tensors[name] *= np.float32(step)
    tensors["model.norm.weight"][:] = 1  # or a loop that adds nothing would still turn the state
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory, bundle_of):
    """Float32 models by how much their loops change, from drafts that are mostly right to hardly ever."""
    loaded = {}
    for step in (0.01, 0.05, 0.5):
        loaded[step] = ouro_edge.load(bundle_of(checkpoint(tmp_path_factory.mktemp("near") / "m", step)))
    return loaded


def run(model, plan=None, sequence=None, prompt=PROMPT, **options):
    """Tokens, Done and the sequence of a generation that drafts as the plan says, or not at all."""
    sequence = model.new_sequence() if sequence is None else sequence
    options = {"stop_ids": (), **options}
    *tokens, done = model.generate(prompt, sequence=sequence, speculate=False if plan is None else plan, **options)
    return tokens, done, sequence


def check_same(found, wanted):
    """Two runs told the same: ids and depths exactly, numbers up to the rounding of calls with several rows."""
    assert [t.id for t in found] == [t.id for t in wanted]
    assert [t.depth for t in found] == [t.depth for t in wanted]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.exit_probs, b.exit_probs, atol=1e-4)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        for mine, its in zip((a.top_logprobs, *a.logit_lens), (b.top_logprobs, *b.logit_lens), strict=True):
            assert [i for i, _ in mine] == [i for i, _ in its]
            np.testing.assert_allclose([x for _, x in mine], [x for _, x in its], atol=1e-3)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    step=st.sampled_from([0.01, 0.05, 0.5]),
    prompt=st.lists(st.integers(0, 95), min_size=1, max_size=6),
    policy=POLICIES,
    sampler=SAMPLERS,
    drafts=st.lists(st.builds(DraftPlan, st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=3),
    count=st.integers(1, 16),
    shown=st.booleans(),
)
def test_any_drafts_change_nothing(models, step, prompt, policy, sampler, drafts, count, shown):
    model = models[step]
    options = {"prompt": prompt, "exit": policy, "sampler": sampler, "max_tokens": count, "logit_lens": 2 * shown,
               "top_logprobs": 2 * shown}  # fmt: skip
    wanted, _, plain = run(model, **options)
    found, done, sequence = run(model, Scripted(*drafts), **options)
    check_same(found, wanted)
    assert sequence.tokens == plain.tokens == [*prompt, *(t.id for t in wanted[:-1])]
    assert sequence.frontier == plain.frontier
    assert done.usage.accepted_tokens <= done.usage.drafted_tokens
    # What is left behind is the state of these tokens: the sequence goes on as a fresh one does.
    again, _, _ = run(model, sequence=sequence, prompt=[*sequence.tokens, 9], max_tokens=3)
    fresh, _, _ = run(model, prompt=[*sequence.tokens[: len(prompt) + count - 1], 9], max_tokens=3)
    check_same(again, fresh)


def test_right_drafts_save_calls(models):
    options = {"exit": ouro_edge.FullDepth(), "max_tokens": 33}
    _, plain, _ = run(models[0.01], **options)
    found, done, _ = run(models[0.01], Scripted(DraftPlan(1, 4)), **options)
    usage = done.usage
    assert len(found) == 33 and usage.drafted_tokens > 16
    assert usage.accepted_tokens > 0.8 * usage.drafted_tokens
    assert usage.block_calls < 0.6 * plain.usage.block_calls
    # Every row beyond what a plain run computes belongs to a wrong draft, or to one that was built on it.
    assert 0 <= usage.loops_run - plain.usage.loops_run <= 3 * 4 * (usage.drafted_tokens - usage.accepted_tokens)


def test_deeper_loops_are_run_only_as_far_as_somebody_wants_them(models):
    for threshold in (0.3, 0.5, 0.7):
        options = {"exit": ouro_edge.ExitThreshold(threshold), "max_tokens": 24}
        wanted, plain, _ = run(models[0.01], **options)
        found, done, _ = run(models[0.01], Scripted(DraftPlan(2, 5)), **options)
        check_same(found, wanted)
        wrong = done.usage.drafted_tokens - done.usage.accepted_tokens
        assert done.usage.loops_run <= plain.usage.loops_run + 4 * 5 * wrong


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantised_models_say_the_same(tmp_path_factory, bundle_of, precision):
    path = checkpoint(tmp_path_factory.mktemp("near") / "m", 0.05, hidden_size=64, intermediate_size=128)
    with ouro_edge.load(bundle_of(path, precision, block_size=32)) as model:
        for policy in (ouro_edge.FullDepth(), ouro_edge.ExitThreshold(0.6)):
            wanted, _, _ = run(model, exit=policy, max_tokens=40)
            found, done, _ = run(model, Scripted(DraftPlan(1, 4), DraftPlan(2, 3)), exit=policy, max_tokens=40)
            assert [(t.id, t.depth) for t in found] == [(t.id, t.depth) for t in wanted]
            assert done.usage.accepted_tokens > 0


@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_nano_says_the_same(threshold):
    with ouro_edge.load() as model:
        for text in ("Tell me what you can do", "Who are you?", "Ada likes Ben. Ben likes Cleo. Ada likes who?"):
            options = {"exit": ouro_edge.ExitThreshold(threshold), "max_tokens": 60, "sampler": ouro_edge.Sampler()}
            told = [{"role": "user", "content": text}]
            *wanted, _ = model.chat(told, speculate=False, **options)
            for speculate in (True, "auto"):
                *found, _ = model.chat(told, speculate=speculate, **options)
                assert [(t.id, t.depth, t.text) for t in found] == [(t.id, t.depth, t.text) for t in wanted]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, bundle_of):
    """A model of 12 tokens, undecided enough to sample from."""
    path = checkpoint(tmp_path_factory.mktemp("tiny") / "m", 0.1, vocab_size=12, hidden_size=16, intermediate_size=32,
                      num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)  # fmt: skip
    with ouro_edge.load(bundle_of(path)) as model:
        yield model


def excess(model, samples=400):
    """How far 3 sampled tokens are from their exact joint distribution: chi-square over its 99.9% point."""
    blueprint = {"temperature": 1.0, "top_k": 3}
    exact = {}
    for first in itertools.product(range(12), repeat=2):
        logits = model.forward([1, 2, *first], exit=ouro_edge.FullDepth()).logits[-3:]
        sampling = ouro_edge.Sampler(**blueprint).start()
        a, b, c = (distribution(sampling, row) for row in logits)
        for third in range(12):
            exact[(*first, third)] = a[first[0]] * b[first[1]] * c[third]
    assert sum(exact.values()) == pytest.approx(1)
    counts = dict.fromkeys(exact, 0)
    accepted = drafted = 0
    for seed in range(samples):
        tokens, done, _ = run(model, Scripted(DraftPlan(1, 3)), prompt=[1, 2], max_tokens=4, exit=ouro_edge.FullDepth(),
                              sampler=ouro_edge.Sampler(**blueprint, seed=seed))  # fmt: skip
        counts[tuple(t.id for t in tokens[:3])] += 1
        drafted += done.usage.drafted_tokens
        accepted += done.usage.accepted_tokens
    assert 0.2 * drafted < accepted < 0.95 * drafted  # so that both branches of the rule were taken
    often = [key for key, share in exact.items() if samples * share >= 5]
    rest = 1 - sum(exact[key] for key in often)
    chi2 = sum((counts[key] - samples * exact[key]) ** 2 / (samples * exact[key]) for key in often)
    chi2 += (samples - sum(counts[key] for key in often) - samples * rest) ** 2 / (samples * max(rest, 1e-3))
    freedom = len(often)
    return chi2 / (freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3)  # Wilson and Hilferty


def test_sampling_has_the_exact_joint_distribution(tiny):
    assert excess(tiny) < 1


def test_a_rule_that_keeps_every_draft_is_found_out(tiny, monkeypatch):
    # A private name is patched because the rule that is broken here is the decoder's own: accept right drafts only.
    settle = SpeculativeDecoder._settle

    def keep(self, exited):
        settle(self, exited)
        for position in self._pending:
            if position.states is not None and position.guess is not None:
                position.token = position.guess.token

    monkeypatch.setattr(SpeculativeDecoder, "_settle", keep)
    assert excess(tiny) > 5


@pytest.mark.parametrize("calls", range(1, 14))
def test_cancelled_in_any_call_nothing_uncertain_is_left(models, calls):
    wanted, _, _ = run(models[0.05], max_tokens=12)
    cancel, count = ouro_edge.Cancel(), itertools.count()

    def clock():  # read before and after every call
        if next(count) == 2 * calls:
            cancel.cancel()
        return 0.0

    found, done, sequence = run(models[0.05], Scripted(DraftPlan(1, 4), clock=clock), max_tokens=12, cancel=cancel)
    assert done.reason == "cancelled" and len(found) < 12
    check_same(found, wanted[: len(found)])
    assert sequence.tokens == [*PROMPT, *(t.id for t in found)]
    history = [*sequence.tokens]
    rest, _, _ = run(models[0.05], Scripted(DraftPlan(1, 4)), sequence, history, max_tokens=12 - len(found))
    check_same(rest, wanted[len(found) :])


@pytest.mark.parametrize("kept", range(1, 9))
def test_closed_midway_nothing_uncertain_is_left(models, kept):
    wanted, _, _ = run(models[0.01], max_tokens=12)
    sequence = models[0.01].new_sequence()
    plan = Scripted(DraftPlan(1, 5))
    events = models[0.01].generate(PROMPT, sequence=sequence, speculate=plan, stop_ids=())
    found = [next(events) for _ in range(kept)]
    events.close()
    check_same(found, wanted[:kept])
    assert sequence.tokens == [*PROMPT, *(t.id for t in found[:-1])]


def test_stop_ids_end_an_answer_and_nothing_is_drafted_behind_them(models, monkeypatch):
    free, _, _ = run(models[0.01], max_tokens=20)
    for at in range(2, 12):
        stop = free[at].id
        wanted, _, plain = run(models[0.01], max_tokens=20, stop_ids=[stop])
        fed, sequence = [], models[0.01].new_sequence()
        feed = sequence.append
        monkeypatch.setattr(sequence, "append", lambda ids, fed=fed, feed=feed: (fed.extend(ids), feed(ids)))
        plan = Scripted(DraftPlan(1, 6))
        found, done, _ = run(models[0.01], plan, sequence, max_tokens=20, stop_ids=[stop])
        assert stop not in fed[len(PROMPT) :]
        check_same(found, wanted)
        assert done.reason == "stop" and sequence.tokens == plain.tokens


def test_the_context_can_be_filled_to_the_brim(models):
    found, done, _ = run(models[0.01], Scripted(DraftPlan(1, 8)), prompt=[1] * 508)
    assert len(found) == 5 and done.reason == "length"


def test_a_sequence_that_was_taken_over_is_left_alone(models):
    sequence = models[0.01].new_sequence()
    plan = Scripted(DraftPlan(1, 4))
    first = models[0.01].generate(PROMPT, sequence=sequence, speculate=plan, stop_ids=())
    next(first), next(first)
    *_, _ = models[0.01].generate([9] * 30, max_tokens=2, sequence=sequence, stop_ids=(), speculate=False)
    with pytest.raises(ouro_edge.RequestError, match="another generation"):
        next(first)
    assert len(sequence.tokens) == 31


def test_what_cannot_be_drafted_is_refused_or_left(models, checkpoint_of, bundle_of):
    model = models[0.5]

    class Anything:
        done = False

        def mask(self, logits):
            return

        def accept(self, token):
            return

    budget = ouro_edge.LoopBudget(2.0)
    for options, says in (({"constraint": Anything()}, "constraint"), ({"exit": budget}, "earlier tokens")):
        with pytest.raises(ouro_edge.RequestError, match=says):
            model.generate(PROMPT, speculate=True, **options)
        assert len(list(model.generate(PROMPT, max_tokens=4, stop_ids=(), **options))) == 5
    with pytest.raises(ouro_edge.RequestError, match="'auto'"):
        model.generate(PROMPT, speculate="yes")
    with ouro_edge.load(bundle_of(checkpoint_of(total_ut_steps=1))) as single:
        with pytest.raises(ouro_edge.RequestError, match="one loop"):
            single.generate(PROMPT, speculate=True)
        assert len(list(single.generate(PROMPT, max_tokens=4, stop_ids=()))) == 5


def test_the_command_line_counts_drafts():
    told = ["run", "-p", "Tell me what you can do", "--json", "--exit-threshold", "1"]
    on, off = (json.loads(CliRunner().invoke(main, [*told, flag]).stdout) for flag in ("--speculate", "--no-speculate"))
    assert on["ids"] == off["ids"] and on["depth"] == off["depth"]
    assert on["usage"]["drafted_tokens"] >= on["usage"]["accepted_tokens"] > 0
    assert off["usage"]["drafted_tokens"] == off["usage"]["accepted_tokens"] == 0
    assert on["usage"]["block_calls"] < off["usage"]["block_calls"]


def test_small_models_are_not_drafted_for_unasked(checkpoint_of, bundle_of, monkeypatch):
    """Their loops cost less than the bookkeeping, and what they cost must not hang on the clock."""
    monkeypatch.setattr(DraftPolicy, "is_confident", lambda self, probability: True)
    with ouro_edge.load(bundle_of(checkpoint_of())) as model:
        for speculate, drafts in (("auto", False), (True, True)):
            *_, done = model.generate(PROMPT, max_tokens=20, speculate=speculate, stop_ids=())
            assert (done.usage.drafted_tokens > 0) == drafts
