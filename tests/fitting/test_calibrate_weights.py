"""Calibrated rounding of whole models: closer to the original than rounding to the nearest value, and resumable."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import GOLDEN, write_checkpoint

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import RequestError
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_weights import (
    ROUNDING,
    RoundedFiles,
    WeightCalibration,
    calibration_windows,
    memory_needed,
    round_weights,
)
from ouro_edge.quant import Grid, Scheme
from ouro_edge.system.progress import WAITING

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 128}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def looped(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("looped"), **SIZES)


def state_error(path: Path, checkpoint: Path) -> np.ndarray:
    """Squared error of the states after every loop [R], with the stored weights in the reference."""
    original = open_checkpoint(checkpoint)
    ids = np.random.default_rng(9).integers(0, original.config.vocab_size, 128)
    stored = open_checkpoint(path).weights if path.suffix == ".gguf" else StoredWeights(open_bundle(path))
    expected = reference.run(original.config, original.weights, ids).hidden
    found = reference.run(original.config, stored, ids).hidden
    return np.square(found - expected).mean(axis=(1, 2))


@pytest.mark.parametrize("symmetric", [True, False])
def test_states_of_all_loops_are_closer_than_with_nearest_values(looped, tmp_path, symmetric):
    settings = {"block_size": 32, "symmetric": symmetric, "calibration": None}
    ouro_edge.export(looped, tmp_path / "nearest", **settings)
    ouro_edge.export(looped, tmp_path / "calibrated", rounding=WeightCalibration(), **settings)
    near, calibrated = (state_error(tmp_path / name, looped) for name in ("nearest", "calibrated"))
    assert (calibrated < 0.85 * near).all()
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("nearest", "calibrated")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("precision", ["q4_0", "q4_1", "q8_0"])
def test_files_in_gguf_are_closer_too(looped, tmp_path, precision):
    ouro_edge.export(looped, tmp_path / "nearest.gguf", precision=precision)
    ouro_edge.export(looped, tmp_path / "calibrated.gguf", precision=precision, rounding=WeightCalibration())
    near, calibrated = (state_error(tmp_path / f"{name}.gguf", looped) for name in ("nearest", "calibrated"))
    assert calibrated[0] < near[0]
    if precision != "q8_0":
        assert (calibrated < 0.9 * near).all()


def test_the_manifest_and_the_model_card_tell_how_weights_were_rounded(looped, tmp_path, own_cache):
    ouro_edge.export(looped, tmp_path / "out", rounding=WeightCalibration(rows=1024), calibration=None)
    assert open_bundle(tmp_path / "out").manifest.rounding == {
        "method": "calibrated", "text": "built-in", "tokens": 256, "loops": 4,
    }  # fmt: skip
    assert "rounded by calibration on 256 tokens of the built-in text" in (tmp_path / "out" / "README.md").read_text()
    assert not list(own_cache.glob("*rounding*"))  # the saved layers are removed


def interrupted_at(layer: int):
    def progress(done: int, total: int, what: str) -> None:
        if what == f"layer {layer + 1} of {SIZES['num_hidden_layers']}":
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_calibration_continues_with_the_next_layer(looped, tmp_path):
    weights = open_checkpoint(looped).weights
    windows = calibration_windows(weights.config, None, WeightCalibration(rows=1024))

    def run(folder: Path, progress=None) -> RoundedFiles:
        round_weights(weights, windows, Scheme(8, 32), lambda name: Grid(4, 32, "middle"), folder, progress)
        return RoundedFiles(folder)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", interrupted_at(2))
    saved = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("layer-*")}
    assert len(saved) == 2
    seen = []
    again = run(tmp_path / "killed", lambda done, total, what: seen.append(what))
    assert seen == [ROUNDING, "layer 3 of 3", ""]
    assert {file: file.stat().st_mtime_ns for file in saved} == saved
    assert sorted(again) == sorted(whole) and len(whole) == 3 * 7
    for name in whole:
        np.testing.assert_array_equal(again[name].codes, whole[name].codes)
        np.testing.assert_array_equal(again[name].scales, whole[name].scales)


def test_an_interrupted_export_finds_its_layers(looped, tmp_path, own_cache):
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("layer 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ouro_edge.export(looped, tmp_path / "out", rounding=WeightCalibration(rows=1024), progress=stop)
    (folder,) = own_cache.glob("*-rounding-*")
    assert len(list(folder.glob("layer-*.npz"))) == 2
    assert not (tmp_path / "out").exists()
    ouro_edge.export(looped, tmp_path / "out", rounding=WeightCalibration(rows=1024))
    assert open_bundle(tmp_path / "out").manifest.rounding
    assert not folder.exists()


def test_of_two_equal_exports_the_second_one_waits(looped, tmp_path):
    """Both keep their layers in the same folder, which the one that ends first removes."""
    began, waits, said = threading.Event(), threading.Event(), []

    def first(done: int, total: int, what: str) -> None:
        if what.startswith("layer 2"):
            began.set()
            assert waits.wait(60)

    def second(done: int, total: int, what: str) -> None:
        said.append(what)
        if what == WAITING:
            waits.set()

    def export(name: str, progress) -> Path:
        return ouro_edge.export(looped, tmp_path / name, rounding=WeightCalibration(rows=1024), progress=progress).path

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(export, "one", first)
        assert began.wait(60)
        two = pool.submit(export, "two", second)
        assert open_bundle(one.result()).weights_id == open_bundle(two.result()).weights_id
    assert said.count(WAITING) == 1


def test_the_memory_limit_lowers_the_number_of_rows():
    config = open_checkpoint(GOLDEN).config
    free = calibration_windows(config, None, WeightCalibration())
    limit = memory_needed(config, 8192) / 1e9
    limited = calibration_windows(config, None, WeightCalibration(memory=limit))
    assert limited.size * config.loops <= 8192 < free.size * config.loops
    with pytest.raises(RequestError, match=r"needs .* GB; --memory allows 0.001 GB"):
        calibration_windows(config, None, WeightCalibration(memory=0.001))


def test_refusals(looped, tmp_path):
    for precision, out in (("fp32", "out"), ("f16", "out.gguf")):
        with pytest.raises(RequestError, match=r"fp32 rounds nothing|f16 cannot be calibrated"):
            ouro_edge.export(looped, tmp_path / out, precision=precision, rounding=WeightCalibration())
    with pytest.raises(RequestError, match="calibrated on random ids"):
        ouro_edge.export(looped, tmp_path / "out", rounding=WeightCalibration(text="hello"), calibration=None)
    with pytest.raises(RequestError, match="rows is 5"):
        WeightCalibration(rows=5)
    with pytest.raises(RequestError, match="memory is -1"):
        WeightCalibration(memory=-1)
