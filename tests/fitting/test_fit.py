"""Stage II against its formulas, slow plain code and a world where the right gate is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ouro_edge.arch.reference import exit_depths
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.errors import NoGateError, RequestError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting import (
    OBJECTIVES,
    Features,
    at_threshold,
    choose_threshold,
    fit_to_features,
    gate_logits,
    original_gate,
    targets,
)
from ouro_edge.fitting.gate_fit import StageTwo
from ouro_edge.fitting.lbfgs import minimise


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_features(seed: int = 0, loops: int = 4, positions: int = 150, width: int = 5) -> Features:
    rng = np.random.default_rng(seed)
    hidden = (rng.normal(size=(loops, positions, width)) * rng.uniform(0.3, 4, width) + 1).astype(np.float32)
    loss = rng.uniform(0, 0.2, (loops, positions))
    return Features(hidden, loss, loss < 0.05)


def world(seed: int, positions: int = 600) -> Features:
    """Each token needs 1 to 4 loops, and a state shows whether its token is done: the first two of eight numbers."""
    rng = np.random.default_rng(seed)
    needs = rng.integers(1, 5, positions)
    done = np.arange(1, 5)[:, None] >= needs  # [R, N]
    hidden = rng.normal(size=(4, positions, 8)) * np.array([0.2, 0.2, 1, 1, 1, 1, 1, 1])
    hidden[..., 0] += np.where(done, 1.5, -1.5)
    hidden[..., 1] += np.where(done, -1.0, 1.0) + 3
    return Features(hidden.astype(np.float32), np.where(done, 0.1, 3.0), done)


def test_targets_are_the_published_formula():
    loss = np.array([[2.0, 0.5], [2.0, 0.4], [1.99, 0.7], [0.0, 0.3]])
    going = np.array([[sigmoid(50 * (g - 0.005)) for g in row] for row in ((0.0, 0.1), (0.01, 0.0), (1.99, 0.4))])
    for objective, taught in (("published", slice(1, None)), ("look-ahead", slice(0, -1))):
        found, loops = targets(loss, objective)
        np.testing.assert_allclose(found, going, rtol=1e-12)
        assert loops == taught
    best = np.array([[sigmoid(50 * (g - 0.005)) for g in row] for row in ((2.0, 0.2), (2.0, 0.1), (1.99, 0.4))])
    np.testing.assert_allclose(targets(loss, "horizon")[0], best, rtol=1e-12)
    with pytest.raises(RequestError, match="look-ahead, published, horizon"):
        targets(loss, "backward")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objective_is_binary_cross_entropy_and_its_gradient_fits(objective):
    features = random_features()
    start = FittedGate(np.array([0.3, -0.2, 0.1, 0.0, 0.5], np.float32), -0.4)
    go_on, taught = targets(features.loss, objective)
    problem = StageTwo(features.hidden[taught], go_on, start)
    point = problem.start + np.random.default_rng(1).normal(size=6)
    weight, bias = problem.gate(point)
    total = 0.0
    for loop, goals in zip(range(4)[taught], go_on, strict=True):
        for state, goal in zip(features.hidden[loop].astype(float), goals, strict=True):
            on = 1 - sigmoid(float(state @ weight) + bias)
            total -= goal * math.log(on) + (1 - goal) * math.log(1 - on)
    assert problem.cross_entropy(point) == pytest.approx(total / go_on.size, rel=1e-9)
    value, gradient = problem(point)
    assert value > problem.cross_entropy(point)
    for i, step in enumerate(np.eye(6) * 1e-5):
        slope = (problem(point + step)[0] - problem(point - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, abs=1e-8)
    back, offset = problem.gate(problem.start)
    np.testing.assert_allclose(back, start.weight, rtol=1e-12)
    assert offset == pytest.approx(start.bias)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fit_equals_plain_newton_steps(objective):
    features = random_features(seed=2)
    start = FittedGate(np.full(5, 0.1, np.float32), 0.2)
    go_on, taught = targets(features.loss, objective)
    rows = features.hidden[taught].reshape(-1, 5).astype(float)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    design = np.hstack([(rows - mean) / spread, np.ones((len(rows), 1))])
    old = np.append(start.weight * spread, start.bias + start.weight @ mean)
    pull = np.append(np.full(5, 5 / (9 * len(rows))), 0.0)
    theta = old.copy()
    for _ in range(30):
        on = 1 / (1 + np.exp(design @ theta))
        gradient = design.T @ (go_on.reshape(-1) - on) / len(rows) + pull * (theta - old)
        hessian = design.T @ (design * (on * (1 - on))[:, None]) / len(rows) + np.diag(pull)
        theta = theta - np.linalg.solve(hessian, gradient)
    fit = fit_to_features(features, start, objective)
    np.testing.assert_allclose(fit.gate.weight, theta[:-1] / spread, atol=1e-4)
    assert fit.gate.bias == pytest.approx(theta[-1] - mean @ (theta[:-1] / spread), abs=1e-4)
    assert fit.after < fit.before


def test_the_pull_to_the_old_gate_is_weak_with_many_tokens_and_strong_with_few():
    start = FittedGate(np.array([5.0] + [0.0] * 7, np.float32), 0.0)
    few, many = (fit_to_features(world(3, n), start).gate.weight[0] for n in (5, 2000))
    blank = fit_to_features(world(3, 2000), FittedGate(np.zeros(8, np.float32), 0.0)).gate.weight[0]
    assert few > 2.0 and many == pytest.approx(blank, abs=0.1)


@pytest.mark.parametrize("objective", ["look-ahead", "horizon"])
def test_a_known_world_is_learned_and_holds_on_other_tokens(objective):
    rng = np.random.default_rng(9)
    old = FittedGate((0.3 * rng.normal(size=8)).astype(np.float32), -0.5)
    fit = fit_to_features(world(0), old, objective)
    test = world(1)
    before, after = gate_logits(test.hidden, old), gate_logits(test.hidden, fit.gate)
    needs = 5 - test.hits.sum(axis=0)
    depths = exit_depths(after, choose_threshold(after, needs.mean()))
    by_need = [depths[needs == n].mean() for n in (1, 2, 3, 4)]
    if objective == "horizon":  # look-ahead stops where one more loop alone gains nothing
        np.testing.assert_allclose(by_need, [1, 2, 3, 4], atol=0.05)
    assert by_need == sorted(by_need) and by_need[3] > by_need[0] + 1
    for budget in (1.5, 2.0, 2.5, 3.0):
        points = [at_threshold(test, logits, choose_threshold(logits, budget)) for logits in (before, after)]
        assert points[1].loss < points[0].loss - 0.1 and points[1].accuracy > points[0].accuracy + 0.05


def test_the_same_features_give_the_same_gate():
    fits = [fit_to_features(world(0), FittedGate(np.zeros(8, np.float32), 0.0)) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].gate.weight, fits[1].gate.weight)
    assert fits[0].gate.bias == fits[1].gate.bias and fits[0].gate.weight.dtype == np.float32


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_everything_stays_finite(scale):
    features = random_features()
    features.hidden[..., 0] = 7.0  # tells nothing
    features.hidden[..., 1:] *= scale
    features.loss[0] = 1e4
    start = FittedGate(np.full(5, 30.0, np.float32), -500.0)
    for objective in OBJECTIVES:
        fit = fit_to_features(features, start, objective)
        assert np.isfinite(fit.gate.weight).all() and math.isfinite(fit.gate.bias)
        assert math.isfinite(fit.before) and fit.after <= fit.before + 1e-9
        assert np.isfinite(gate_logits(features.hidden, fit.gate)).all()


def test_the_original_gate_comes_out_of_the_bundle(bundle_of, checkpoint_of):
    checkpoint = checkpoint_of()
    gate = original_gate(open_bundle(bundle_of(checkpoint, "int4", block_size=16)))
    weights = open_checkpoint(checkpoint).weights
    np.testing.assert_array_equal(gate.weight, weights["exit_gate.weight"][0])
    assert gate.bias == weights["exit_gate.bias"][0] and gate.threshold is None
    with pytest.raises(NoGateError, match="no exit gate"):
        original_gate(open_bundle(bundle_of(checkpoint_of(model_type="llama"))))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_the_minimiser_solves_quadratics(seed, size):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) / size**0.5
    matrix, wanted = root @ root.T + 0.1 * np.eye(size), rng.normal(size=size)

    def function(x):
        return 0.5 * float((x - wanted) @ matrix @ (x - wanted)), matrix @ (x - wanted)

    values = []
    found = minimise(lambda x: (values.append(function(x)[0]), function(x))[1], np.zeros(size))
    np.testing.assert_allclose(found.point, wanted, atol=2e-5)
    assert found.value == function(found.point)[0] <= min(values)
    assert minimise(function, found.point).iterations == 0
    assert minimise(function, np.full(size, 100.0), iterations=2).iterations <= 2
