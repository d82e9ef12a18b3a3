"""Calibrated rounding against exhaustive search, against rounding to the nearest value, and its exact cases."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ouro_edge.errors import CheckpointError
from ouro_edge.quant import Grid, Objective, Scheme, dequantize, grid_of, quantize, round_matrix
from ouro_edge.quant.packing import unpack


def correlated_inputs(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Inputs with few directions and a few large channels, as in language models."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, width // 4)) @ rng.standard_normal((width // 4, width))
    scales = np.exp(rng.normal(0, 1, width))
    return ((mixed + 0.3 * rng.standard_normal((rows, width))) * scales).astype(np.float32)


def output_error(weights: np.ndarray, values: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (weights - values).T).mean())


@pytest.mark.parametrize("zero", ["middle", "whole", "float"])
@pytest.mark.parametrize("size", [32, 128])
def test_outputs_are_closer_than_with_nearest_values(zero, size):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((40, 208)).astype(np.float32) * 0.05  # the last block is incomplete
    inputs, held = correlated_inputs(4096, 208), None
    inputs, held = inputs[:2048], inputs[2048:]
    objective = Objective(inputs.T @ inputs / len(inputs))
    grid = Grid(4, size, zero)
    calibrated = round_matrix(weights, objective, grid)
    nearest = dequantize(quantize(weights, Scheme(4, size, zero == "middle")))
    assert output_error(weights, calibrated.values(grid), held) < 0.35 * output_error(weights, nearest, held)


@pytest.mark.parametrize("zero", ["middle", "whole", "float"])
def test_every_sweep_lowers_the_error_on_the_calibration_inputs(zero):
    weights = np.random.default_rng(2).standard_normal((16, 96)).astype(np.float32)
    inputs = correlated_inputs(1000, 96)
    objective, grid = Objective(inputs.T @ inputs / len(inputs)), Grid(4, 32, zero)

    def error(sweeps: int) -> float:
        rest = (weights - round_matrix(weights, objective, grid, sweeps=sweeps).values(grid)).astype(np.float64)
        return float(np.einsum("nk,kl,nl->", rest, objective.hessian.astype(np.float64), rest))

    errors = [error(sweeps) for sweeps in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.97 * errors[0]


def test_codes_are_near_the_best_ones_of_an_exhaustive_search():
    """All 16**4 codes of one row of four weights, at the scale that was found."""
    weights, grid = np.array([[0.31, -0.72, 0.05, 0.44]], np.float32), Grid(4, 16, "middle")
    inputs = correlated_inputs(500, 4, seed=3)
    objective = Objective(inputs.T @ inputs / len(inputs))
    found = round_matrix(weights, objective, grid, sweeps=3)
    hessian, scale = objective.hessian.astype(np.float64), float(found.scales[0, 0])

    def error(values: np.ndarray) -> np.ndarray:
        rest = weights.astype(np.float64) - values
        return np.einsum("nk,kl,nl->n", rest, hessian, rest)

    every = np.array(list(product(range(16), repeat=4)), np.float64) - 8
    assert error(found.values(grid))[0] <= 1.5 * error(every * scale).min() + 1e-12


def test_values_on_the_grid_stay_there():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (8, 64))
    codes[:, ::32] = 0  # every block reaches its extreme
    weights = ((codes - 8) * 0.0625).astype(np.float32)
    inputs = correlated_inputs(300, 64)
    grid = Grid(4, 32, "middle")
    found = round_matrix(weights, Objective(inputs.T @ inputs / 300), grid)
    np.testing.assert_array_equal(found.values(grid), weights)


def test_the_target_of_other_inputs_is_the_least_squares_solution():
    rng = np.random.default_rng(5)
    own = rng.standard_normal((400, 24)).astype(np.float32)
    exact = own + 0.1 * rng.standard_normal((400, 24)).astype(np.float32)
    weights = rng.standard_normal((5, 24)).astype(np.float32)
    objective = Objective(own.T @ own, damping=0, shrinkage=0)
    expected = np.linalg.lstsq(own, exact @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(objective.target(weights, (exact @ weights.T).T @ own), expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(7, 64), (3, 72)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_packed_tensor_has_the_same_values(shape, symmetric):
    scheme = Scheme(4, 32, symmetric)
    weights = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    inputs = correlated_inputs(300, shape[1])
    grid = grid_of(scheme)
    found = round_matrix(weights, Objective(inputs.T @ inputs / 300), grid)
    tensor = found.tensor(scheme)
    np.testing.assert_array_equal(dequantize(tensor), found.values(grid))
    padding = unpack(tensor.packed, 4, 32).reshape(shape[0], -1)[:, shape[1] :]
    zeros = np.repeat(found.zeros, 32, axis=1)[:, shape[1] :]
    np.testing.assert_array_equal(padding, zeros)


def test_scales_and_minima_are_float16_values():
    weights = np.random.default_rng(7).standard_normal((4, 64)).astype(np.float32) * 1e-6
    weights[0] = 0
    found = round_matrix(weights, Objective(np.eye(64)), Grid(4, 32, "float"))
    for array in (found.scales, found.zeros):
        np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))
    assert np.isfinite(found.values(Grid(4, 32, "float"))).all()
    assert not found.values(Grid(4, 32, "float"))[0].any()


def test_the_result_does_not_depend_on_threads():
    weights = np.random.default_rng(8).standard_normal((2100, 32)).astype(np.float32)
    inputs = correlated_inputs(200, 32)
    objective, grid = Objective(inputs.T @ inputs / 200), Grid(4, 32, "middle")
    one, two = (round_matrix(weights, objective, grid, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.scales, two.scales)


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(CheckpointError, match="not finite"):
        Objective(np.full((4, 4), np.nan))
