"""The exported model, through the Python API, against what the published modelling code computed."""

from __future__ import annotations

import numpy as np
import pytest

import ouro_edge

PROMPT = 12


@pytest.fixture(scope="module")
def model(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        yield loaded


@pytest.mark.parametrize("row", [0, 1])
def test_fixed_depths(golden, model, row):
    ids = golden["input_ids"][row].tolist()
    for depth in range(1, 5):
        out = model.forward(ids, exit=ouro_edge.FixedDepth(depth))
        np.testing.assert_allclose(out.logits, golden[f"logits_step{depth}"][row], atol=1e-3)
        np.testing.assert_allclose(out.hidden, golden["hidden_steps"][row, :, depth - 1], atol=1e-3)
        assert out.depth.tolist() == [depth] * len(ids)


@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7", "0.9", "1.0"])
@pytest.mark.parametrize("row", [0, 1])
def test_thresholds(golden, model, row, threshold):
    policy = ouro_edge.ExitThreshold(float(threshold))
    out = model.forward(golden["input_ids"][row].tolist(), exit=policy)
    np.testing.assert_allclose(out.logits, golden[f"logits_threshold_{threshold}"][row], atol=1e-3)
    events = model.generate(golden["input_ids"][row, :PROMPT].tolist(), max_tokens=24, exit=policy, stop_ids=())
    ids = [event.id for event in events if isinstance(event, ouro_edge.Token)]
    assert ids == golden[f"greedy_threshold_{threshold}_row{row}"].tolist()


def test_exit_probabilities(golden, model):
    out = model.forward(golden["input_ids"][0].tolist())
    stop = 1 / (1 + np.exp(-golden["gate_logits"][0].astype(np.float64)))
    np.testing.assert_allclose(out.exit_probs[:, 0], stop[:, 0], atol=1e-4)
    np.testing.assert_allclose(out.exit_probs.sum(axis=1), 1.0, atol=1e-6)
    assert np.isnan(model.forward([3, 4], exit=ouro_edge.FixedDepth(2)).exit_probs[:, 2:]).all()
