"""What exit rules measure, of an exported model, against the published code's exit statistics for the same weights.

`exitval_*` of the golden file are those of the last position after each of 8 steps, all positions at the same step;
those of states are means over the positions.
"""

from __future__ import annotations

import numpy as np
import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.runtime.exits.comparisons import unchanged_loops
from ouro_edge.runtime.exits.loop_states import LoopStates

HUGINN, STEPS = GOLDEN.parent / "raven-tiny", 8


@pytest.fixture(scope="module", params=[0, 1])
def measured(request, bundle_of):
    """The published statistics [8] by name, and the states of all positions after every step."""
    with np.load(HUGINN / "expected.npz") as arrays, ouro_edge.load(bundle_of(HUGINN), kv="fp32") as model:
        ids = arrays["input_ids"][request.param].tolist()
        sequence = model.new_sequence()
        sequence.set_prompt(ids)
        *_, last = sequence.run_positions(range(len(ids)), ouro_edge.FixedDepth(STEPS))
        logits = {step: model.forward(ids, exit=ouro_edge.FixedDepth(step)).logits for step in range(1, STEPS + 1)}
        rows = [last.states[step].hidden for step in range(1, STEPS + 1)]
        width = model.config.hidden_size
        states = LoopStates(last.states.gate_logits, rows, model.backend.head, logits, part=slice(width, 2 * width))
        published = {
            name.removeprefix("exitval_"): arrays[name][:, request.param] for name in arrays if "exitval" in name
        }
        yield published, states


def values(rule, states):
    return np.stack([rule.measure(states[step]) for step in range(1, STEPS + 1)])


def test_all_statistics_of_the_golden_file_are_compared(measured):
    assert set(measured[0]) == {"kl", "entropy_diff", "latent_diff", "argmax_stability", "cosine"}


def test_divergence(measured):
    published, states = measured
    np.testing.assert_allclose(values(ouro_edge.DivergenceThreshold(0), states)[:, -1], published["kl"], atol=1e-4)


def test_entropy(measured):
    """Theirs starts from an entropy of 100 before step 1, which stops nothing; ours compares from step 2 on."""
    published, states = measured
    found = values(ouro_edge.EntropyChange(0), states)[:, -1]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], published["entropy_diff"][1:], atol=1e-4)
    np.testing.assert_allclose(100 - states[1].entropy[-1], published["entropy_diff"][0], atol=1e-4)


def test_states(measured):
    published, states = measured
    for rule, name in ((ouro_edge.StateChange(0), "latent_diff"), (ouro_edge.StateTurn(0), "cosine")):
        found = values(rule, states)
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1:].mean(axis=1), published[name][1:], atol=1e-4)


def test_first_choice(measured):
    published, states = measured
    found = [unchanged_loops(states[step], STEPS)[-1] for step in range(1, STEPS + 1)]
    assert found == published["argmax_stability"].tolist() and 1 in found


@pytest.mark.parametrize("position", [-1, 3, 7])
@pytest.mark.parametrize("rule", [ouro_edge.DivergenceThreshold, ouro_edge.EntropyChange, ouro_edge.StateChange,
                                  ouro_edge.StateTurn])  # fmt: skip
def test_a_position_stops_at_the_measured_value_and_not_above(measured, rule, position):
    _, states = measured
    found = values(rule(0), states)[:, position]
    for step in range(2, STEPS + 1):
        assert rule(found[step - 1]).stops(states[step])[position]
        assert not rule(np.nextafter(found[step - 1], -1)).stops(states[step])[position]
    first = 1 if rule is ouro_edge.DivergenceThreshold else 2  # the others have nothing to compare at step 1
    assert rule(np.inf).stops(states[1])[position] == (first == 1)


@pytest.mark.parametrize("loops", [1, 2])
def test_a_stable_choice_is_counted(measured, loops):
    published, states = measured
    stops = [ouro_edge.StableChoice(loops).stops(states[step])[-1] for step in range(1, STEPS + 1)]
    assert stops == (published["argmax_stability"] >= loops).tolist()
    agrees = [ouro_edge.Agreement().stops(states[step])[-1] for step in range(1, STEPS + 1)]
    assert agrees == (published["argmax_stability"] >= 1).tolist()
