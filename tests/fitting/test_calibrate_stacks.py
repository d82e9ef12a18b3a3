"""Calibrated rounding of a model with two stacks of layers: each is walked with the rows of its own passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import GOLDEN

from ouro_edge.arch import reference
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_weights import (
    ROUNDING,
    RoundedFiles,
    WeightCalibration,
    calibration_windows,
    round_weights,
)
from ouro_edge.quant import Grid, Scheme, dequantize, quantize

HRM = GOLDEN.parent / "hrm-tiny"
GRID = Grid(4, 32, "middle")


def rounded(folder: Path, progress=None) -> RoundedFiles:
    weights = open_checkpoint(HRM).weights
    windows = calibration_windows(weights.config, None, WeightCalibration(rows=4096))
    round_weights(weights, windows, Scheme(8, 32), lambda name: GRID, folder, progress)
    return RoundedFiles(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return rounded(tmp_path_factory.mktemp("whole"))


def test_every_pass_is_closer_than_with_nearest_values(whole):
    opened = open_checkpoint(HRM)
    weights = dict(opened.weights)
    matrices = [name for name in weights if name.endswith("_proj")]
    assert sorted(whole) == sorted(matrices) and len(matrices) == 4 * 8
    near = weights | {name: dequantize(quantize(weights[name], Scheme(4, 32))) for name in matrices}
    calibrated = weights | {name: whole[name].values(GRID) for name in matrices}
    ids = np.random.default_rng(9).integers(0, opened.config.vocab_size, 128)
    expected, *found = (reference.run(opened.config, w, ids).hidden for w in (weights, near, calibrated))
    errors = [np.square(states - expected).mean(axis=(1, 2)) for states in found]
    assert (errors[1] < 0.85 * errors[0]).all()


@pytest.mark.parametrize("layer", [2, 3, 4])  # in the first stack, at the start of the second, in the second
def test_an_interrupted_calibration_continues(whole, tmp_path, layer):
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith(f"layer {layer} "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounded(tmp_path, stop)
    seen: list[str] = []
    again = rounded(tmp_path, lambda done, total, what: seen.append(what))
    assert seen == [ROUNDING, *(f"layer {i} of 4" for i in range(layer, 5)), ""]
    for name in whole:
        np.testing.assert_array_equal(again[name].codes, whole[name].codes)
