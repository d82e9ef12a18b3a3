"""A fitted gate is stored beside the bundle, replaces the checkpoint's, and is refused when it does not belong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import GATE_FILE, FittedGate, write_gate
from ouro_edge.errors import BundleError, RequestError

PROMPT = [5, 17, 3, 88, 41]


@pytest.fixture
def bundle(bundle_of, tmp_path):
    return open_bundle(shutil.copytree(bundle_of(), tmp_path / "model"))


def test_a_fitted_gate_replaces_the_original_and_leaves_it_in_place(bundle):
    with ouro_edge.load(bundle.path) as model:
        original = model.forward(PROMPT).exit_probs
    gate = FittedGate(np.zeros(64, np.float32), 1.0, 0.6, {"data": "none"})
    write_gate(bundle, gate)
    found = bundle.fitted_gate()
    assert found is not None and found.threshold == 0.6 and found.report == {"data": "none"}
    stop = 1 / (1 + np.exp(-1.0))
    with ouro_edge.load(bundle.path) as model:
        np.testing.assert_allclose(model.forward(PROMPT, exit=ouro_edge.FullDepth()).exit_probs[:, 0], stop, atol=1e-6)
        assert model.default_exit() == ouro_edge.ExitThreshold(0.6)
        assert model.forward(PROMPT).depth.tolist() == [1] * 5  # sigmoid(1) = 0.73 is past the threshold
        tokens = [e for e in model.generate(PROMPT, max_tokens=3, stop_ids=()) if isinstance(e, ouro_edge.Token)]
        assert [token.depth for token in tokens] == [1, 1, 1]
    with ouro_edge.load(bundle.path, gate="original") as model:
        np.testing.assert_array_equal(model.forward(PROMPT).exit_probs, original)
    with pytest.raises(RequestError, match="original"):
        ouro_edge.load(bundle.path, gate="mine")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(fitted_on="0" * 64), "other weights"),
        (lambda d: d.update(weight=[1.0] * 63), "64 finite weights"),
        (lambda d: d["weight"].__setitem__(3, float("nan")), "64 finite weights"),
        (lambda d: d.update(bias="x"), "64 finite weights"),
        (lambda d: d.update(bias=10**400), "64 finite weights"),
        (lambda d: d["weight"].__setitem__(3, 1e39), "64 finite weights"),
        (lambda d: d.update(threshold=1.5), "threshold"),
    ],
)
def test_a_gate_that_does_not_belong_is_refused(bundle, change, says):
    file = write_gate(bundle, FittedGate(np.zeros(64, np.float32), 0.0))
    assert file.name == GATE_FILE
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=says):
        ouro_edge.load(bundle.path)
