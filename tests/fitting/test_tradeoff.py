"""Depth against loss, and the threshold search against trying every threshold that makes a difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ouro_edge.arch.reference import exit_depths, exit_probabilities
from ouro_edge.errors import RequestError
from ouro_edge.fitting import Features, at_depth, at_threshold, choose_threshold
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitThreshold


def mean_depth(logits, threshold):
    return exit_depths(logits, threshold).mean()


@st.composite
def gates(draw, most=6.0):
    loops, positions = draw(st.integers(2, 5)), draw(st.integers(1, 12))
    values = st.floats(-most, most, allow_subnormal=False) | st.sampled_from([-1.0, 0.0, 1.0])
    return np.array(draw(st.lists(values, min_size=loops * positions, max_size=loops * positions))).reshape(-1, loops)


@settings(max_examples=100, deadline=None)
@given(gates(), st.floats(0, 1))
def test_the_chosen_threshold_is_the_best_of_all(logits, share):
    budget = 1 + share * (logits.shape[1] - 1)
    chosen = choose_threshold(logits, budget)
    assert 0.0 <= chosen <= 1.0
    depth = mean_depth(logits, chosen)
    assert depth <= budget + 1e-8
    # The mean depth is a step function of the threshold: one try between each two of its steps sees all of it.
    steps = np.unique(np.cumsum(exit_probabilities(logits, logits.shape[1]), axis=1))
    tries = np.concatenate([[0.0], (steps[1:] + steps[:-1]) / 2, steps, [1.0]])
    possible = [d for t in tries if 0 <= t <= 1 and (d := mean_depth(logits, t)) <= budget + 1e-8]
    apart = np.diff(steps)[np.diff(steps) > 0]
    if len(apart) and apart.min() > 1e-12:
        assert depth == pytest.approx(max(possible))


@given(gates(most=800.0), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_saturated_gate_never_passes_the_budget(logits, share):
    budget = 1 + share * (logits.shape[1] - 1)
    chosen = choose_threshold(logits, budget)
    assert 0.0 <= chosen <= 1.0 and mean_depth(logits, chosen) <= budget + 1e-8


def test_survivals_that_no_threshold_tells_apart():
    logits = np.array([[40.0, 0.0], [38.0, 0.0], [1.0, 0.0]])  # 4e-18, 3e-17, 0.27: below 2^-53 all are one
    assert mean_depth(logits, choose_threshold(logits, 5 / 3)) == pytest.approx(4 / 3)


def test_the_threshold_lies_midway_so_that_rounding_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    for budget in np.linspace(1.1, 3.9, 15):
        threshold = choose_threshold(logits, budget)
        depths = {mean_depth(logits, threshold + change) for change in (-1e-9, 0.0, 1e-9)}
        assert len(depths) == 1


def test_the_ends_of_the_range():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    assert (choose_threshold(logits, 1), choose_threshold(logits, 4)) == (0.0, 1.0)
    for budget in (0.99, 4.01, float("nan")):
        with pytest.raises(RequestError, match="1 to 4"):
            choose_threshold(logits, budget)
    assert mean_depth(logits[:10], choose_threshold(logits[:10], 1.4)) == 1.4  # (1.4 - 1) * 10 is 3.9999999999999996
    same = np.zeros((50, 4))  # all exit together: 1, 2, 3 or 4
    assert [mean_depth(same, choose_threshold(same, b)) for b in (1.9, 2.0, 2.9, 3.9, 4.0)] == [1, 2, 2, 3, 4]


def test_the_runtime_exits_where_the_table_says():
    logits = np.random.default_rng(1).normal(size=(400, 4)).astype(np.float32).astype(np.float64)
    for budget in (1.3, 2.0, 2.77, 3.5):
        threshold = choose_threshold(logits, budget)
        policy = ExitThreshold(threshold)
        stops = np.stack(
            [
                policy.stops(LoopStates(logits[:, :r], [np.zeros((400, 1), np.float32)] * r, lambda rows: rows))
                for r in (1, 2, 3)
            ]
            + [np.ones(400, bool)]
        )
        assert (stops.argmax(axis=0) + 1).tolist() == exit_depths(logits, threshold).tolist()
        assert budget - 1 / 400 <= mean_depth(logits, threshold) <= budget


def test_points_are_means_over_the_exits():
    rng = np.random.default_rng(2)
    loss, hits = rng.uniform(size=(3, 4)), rng.uniform(size=(3, 4)) < 0.5
    features = Features(np.zeros((3, 4, 1), np.float32), loss, hits)
    logits = np.array([[9.0, 0, 0], [-9, 9, 0], [-9, -9, 0], [9, 9, 9]])
    point = at_threshold(features, logits, 0.5)
    assert point.depth == (1 + 2 + 3 + 1) / 4
    assert point.loss == pytest.approx((loss[0, 0] + loss[1, 1] + loss[2, 2] + loss[0, 3]) / 4)
    assert point.accuracy == (int(hits[0, 0]) + int(hits[1, 1]) + int(hits[2, 2]) + int(hits[0, 3])) / 4
    for depth in (1, 2, 3):
        fixed = at_depth(features, depth)
        assert (fixed.depth, fixed.accuracy) == (depth, hits[depth - 1].mean())
        assert fixed.loss == pytest.approx(loss[depth - 1].mean())
    assert at_depth(features, 2.25).loss == pytest.approx(0.75 * loss[1].mean() + 0.25 * loss[2].mean())
