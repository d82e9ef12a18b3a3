"""Every exit policy equals its own full-depth-then-select oracle, position by position, and runs no loop in vain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metered import metered
from models import oracle

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.errors import NoGateError, RequestError
from ouro_edge.runtime.exits.comparisons import (
    Agreement,
    DivergenceThreshold,
    EntropyChange,
    StableChoice,
    StateChange,
    StateTurn,
)
from ouro_edge.runtime.exits.expected_logits import ExpectedLogits
from ouro_edge.runtime.exits.loop_budget import LoopBudget
from ouro_edge.runtime.exits.policies import (
    ConfidenceThreshold,
    EntropyThreshold,
    ExitThreshold,
    FixedDepth,
)

SHARES = st.floats(0.0, 1.0)
POLICIES = st.one_of(
    st.builds(ExitThreshold, SHARES, floor=st.integers(1, 2), ceiling=st.sampled_from([None, 2, 3, 4])),
    st.builds(StateChange, st.floats(0.0, 1.5), floor=st.integers(1, 3)),
    st.builds(ConfidenceThreshold, SHARES, ceiling=st.sampled_from([None, 1, 3])),
    st.builds(EntropyThreshold, st.floats(0.0, 5.0)),
    st.builds(DivergenceThreshold, st.floats(0.0, 5.0)),
    st.builds(EntropyChange, st.floats(0.0, 1.0)),
    st.builds(StateTurn, st.floats(0.0, 0.5), floor=st.integers(1, 3)),
    st.builds(Agreement, floor=st.integers(1, 3)),
    st.builds(StableChoice, st.integers(1, 3)),
)


def wanted_depths(policy, logits, steps):
    """Depth [T] by running everything and then looking: logits [R, T, V], states [R, T, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    last = policy.ceiling or 4
    depths = []
    for t in range(logits.shape[1]):
        for r in range(1, last + 1):
            h, before = steps.hidden[r - 1, t], steps.hidden[r - 2, t] if r > 1 else None
            match policy:
                case ExitThreshold():
                    stop = 1 - np.prod(1 / (1 + np.exp(steps.gate_logits[t, :r]))) >= policy.threshold
                case StateChange():
                    stop = r > 1 and np.linalg.norm(h - before) <= policy.share * np.linalg.norm(h)
                case ConfidenceThreshold():
                    stop = np.exp(logs[r - 1, t].max()) >= policy.probability
                case EntropyThreshold():
                    stop = -(np.exp(logs[r - 1, t]) * logs[r - 1, t]).sum() <= policy.nats
                case DivergenceThreshold():
                    earlier = logs[r - 2, t] if r > 1 else np.full(logs.shape[2], -np.log(logs.shape[2]))
                    stop = (np.exp(earlier) * (earlier - logs[r - 1, t])).sum() <= policy.nats
                case EntropyChange():
                    entropy = [-(np.exp(row) * row).sum() for row in logs[:r, t]]
                    stop = r > 1 and abs(entropy[-1] - entropy[-2]) <= policy.nats
                case StateTurn():
                    stop = r > 1 and 1 - h @ before / np.linalg.norm(h) / np.linalg.norm(before) <= policy.distance
                case StableChoice():
                    choices = logits[max(0, r - 1 - policy.loops) : r, t].argmax(axis=1)
                    stop = r > policy.loops and len(set(choices.tolist())) == 1
                case Agreement():
                    stop = r > 1 and logits[r - 1, t].argmax() == logits[r - 2, t].argmax()
            if (stop and r >= policy.floor) or r == last:
                depths.append(r)
                break
    return depths


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(policy=POLICIES, ids=st.lists(st.integers(0, 95), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_every_policy_equals_its_oracle(checkpoint_of, bundle_of, policy, ids, cut):
    checkpoint = checkpoint_of()
    logits, steps = oracle(checkpoint, ids)
    depths = wanted_depths(policy, logits, steps)
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        out = model.forward(ids, exit=policy)
        assert out.depth.tolist() == depths
        np.testing.assert_allclose(out.logits, logits[np.array(depths) - 1, np.arange(len(ids))], atol=1e-3)
        sequence = model.new_sequence()
        sequence.append([7] * cut)
        if cut:
            sequence.run_until_exit(policy)
        sequence.truncate(0)
        for i, token in enumerate(ids):
            sequence.append([token])
            calls = sequence.work.calls
            states = sequence.run_until_exit(policy)
            assert states.loop == depths[i] == sequence.work.calls - calls
            np.testing.assert_allclose(states.logits[0], logits[depths[i] - 1, i], atol=1e-3)


def test_the_head_is_called_only_when_a_rule_looks(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        watched, meter = metered(model)
        for policy, wanted in ((ExitThreshold(0.5), 3), (StateChange(0.0), 3), (ConfidenceThreshold(1.0), 12)):
            meter.head_rows.clear()
            list(watched.generate([5, 17, 3], max_tokens=3, exit=policy, stop_ids=()))
            assert len(meter.head_rows) == wanted, policy


@pytest.mark.parametrize(
    "make",
    [
        lambda: StateChange(-0.1),
        lambda: StateChange(float("nan")),
        lambda: ConfidenceThreshold(1.5),
        lambda: ConfidenceThreshold("x"),
        lambda: EntropyThreshold(-1),
        lambda: DivergenceThreshold(True),
        lambda: EntropyChange(float("nan")),
        lambda: StateTurn(-1e-9),
        lambda: StableChoice(0),
        lambda: StableChoice(2.0),
        lambda: Agreement(floor=0),
        lambda: Agreement(floor=3, ceiling=2),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(RequestError):
        make()


def test_rules_without_a_gate_work_on_plain_models(checkpoint_of, bundle_of):
    with ouro_edge.load(bundle_of(checkpoint_of(model_type="llama"))) as model:
        assert model.forward([1, 2, 3], exit=ConfidenceThreshold(0.9)).depth.tolist() == [1, 1, 1]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(ids=st.lists(st.integers(0, 95), min_size=1, max_size=12))
def test_a_weighted_exit_is_the_mean_of_all_loops_logits(checkpoint_of, bundle_of, ids):
    logits, steps = oracle(checkpoint_of(), ids)
    p = reference.exit_probabilities(steps.gate_logits, 4)
    wanted = np.einsum("tr,rtv->tv", p, logits)
    with ouro_edge.load(bundle_of(checkpoint_of())) as model:
        out = model.forward(ids, exit=ExpectedLogits())
        np.testing.assert_allclose(out.logits, wanted, atol=1e-3)
        assert set(out.depth.tolist()) == {4}
        sequence = model.new_sequence()
        sequence.append(ids)
        np.testing.assert_allclose(sequence.run_until_exit(ExpectedLogits()).logits[0], wanted[-1], atol=1e-3)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ids=st.lists(st.integers(0, 95), min_size=1, max_size=8),
    mean=st.floats(1.0, 4.5),
    threshold=st.floats(0.2, 1.0),
)
def test_a_budget_is_kept_and_spent_in_order(checkpoint_of, bundle_of, ids, mean, threshold):
    """Each token stops where its rule says or where the account is empty, and what it does not need others get."""
    checkpoint, ids, left = checkpoint_of(), list(ids), 0.0
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        budget = LoopBudget(mean, ExitThreshold(threshold))
        for _ in range(2):  # the second answer starts with a fresh account
            ids, left = ids[:8], 0.0
            for token in list(model.generate(ids, max_tokens=6, exit=budget, stop_ids=()))[:-1]:
                logits, steps = oracle(checkpoint, ids)
                left += mean
                wanted = int(reference.exit_depths(steps.gate_logits, threshold)[-1])
                assert token.depth == min(wanted, int(left + 1e-9))
                assert token.id == logits[token.depth - 1, -1].argmax()
                left -= token.depth
                ids.append(token.id)


def test_a_budget_needs_an_order(bundle_of):
    with ouro_edge.load(bundle_of()) as model, pytest.raises(RequestError, match="use generate or chat"):
        model.forward([1, 2], exit=LoopBudget(2.0))


def test_a_weighted_exit_needs_a_gate(checkpoint_of, bundle_of):
    plain = bundle_of(checkpoint_of(model_type="llama"))
    with ouro_edge.load(plain) as model, pytest.raises(NoGateError, match="a weighted exit means nothing"):
        model.forward([1, 2], exit=ExpectedLogits())


@pytest.mark.parametrize(
    "settings", [(0.9,), (True,), (1e308,), (float("nan"),), ("2",), (2.0, LoopBudget(3.0)), (2.0, FixedDepth)]
)
def test_bad_budgets_are_refused(settings):
    with pytest.raises(RequestError, match="loop budget"):
        LoopBudget(*settings)
