"""Calibration opens the model in little memory. What the ranges are good for is tested in tests/runtime/test_kv.py."""

from __future__ import annotations

import shutil

import onnxruntime
import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.kv_ranges import read_ranges
from ouro_edge.errors import BundleError, RequestError


@pytest.fixture
def packs_in_parallel(monkeypatch):
    """For each session that is opened, whether its weights are packed in parallel; memory is plentiful."""
    monkeypatch.setattr("ouro_edge.runtime.backend.session.available_memory", lambda: 1 << 60)
    real, found = onnxruntime.InferenceSession, []

    def open_session(graph, options, **more):
        try:
            found.append(options.get_session_config_entry("session.prepack.enable_parallel") == "1")
        except RuntimeError:  # it was not set
            found.append(False)
        return real(graph, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    return found


def test_weights_are_packed_one_after_the_other(bundle_of, tmp_path, packs_in_parallel):
    """In parallel, all pages of the data file are resident beside the packed weights: twice the memory."""
    path = shutil.copytree(bundle_of(), tmp_path / "model")
    assert ouro_edge.calibrate(path, tokens=16) == 16
    ouro_edge.export(GOLDEN, tmp_path / "out")
    assert set(packs_in_parallel) == {False}
    packs_in_parallel.clear()
    ouro_edge.load(path, prefill_weights="none").close()
    assert set(packs_in_parallel) == {True}


def test_a_directory_and_an_open_bundle_give_the_same(bundle_of, tmp_path):
    ranges = []
    for name in ("by-path", "open"):
        path = shutil.copytree(bundle_of(), tmp_path / name)
        ouro_edge.calibrate(str(path) if name == "by-path" else open_bundle(path), tokens=32)
        ranges.append(read_ranges(open_bundle(path)).tobytes())
    assert ranges[0] == ranges[1]


def test_refusals(bundle_of, tmp_path):
    path = shutil.copytree(bundle_of(), tmp_path / "model")
    with pytest.raises(RequestError, match="tokens is 3; expected a whole number of at least 16"):
        ouro_edge.calibrate(path, tokens=3)
    with pytest.raises(RequestError, match="no tokenizer, so it is calibrated on random ids"):
        ouro_edge.calibrate(path, "some text")
    with pytest.raises(BundleError, match="not an exported model"):
        ouro_edge.calibrate(GOLDEN)
    assert not (path / "kv_ranges.json").exists()
