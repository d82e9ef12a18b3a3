"""The reference against what the published modelling code computed."""

from __future__ import annotations

import numpy as np
import pytest
from models import GOLDEN

from ouro_edge.arch import reference
from ouro_edge.export.open_checkpoint import open_checkpoint

THRESHOLDS = ("0.3", "0.5", "0.7", "0.9", "1.0")
PROMPT = 12  # the golden continuations follow the first 12 tokens of each row


@pytest.fixture(scope="module")
def model():
    checkpoint = open_checkpoint(GOLDEN)
    return checkpoint.config, dict(checkpoint.weights)


@pytest.mark.parametrize("row", [0, 1])
def test_every_step(golden, model, row):
    config, weights = model
    steps = reference.run(config, weights, golden["input_ids"][row])
    logits = reference.head(weights, steps.hidden)
    for r in range(config.loops):
        np.testing.assert_allclose(logits[r], golden[f"logits_step{r + 1}"][row], atol=1e-4)
        np.testing.assert_allclose(steps.hidden[r], golden["hidden_steps"][row, :, r], atol=1e-4)
    np.testing.assert_allclose(steps.gate_logits, golden["gate_logits"][row], atol=1e-4)
    p = reference.exit_probabilities(steps.gate_logits, config.loops)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.einsum("tr,rtv->tv", p, logits), golden["logits_weighted"][row], atol=1e-4)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("row", [0, 1])
def test_thresholds(golden, model, row, threshold):
    config, weights = model
    steps = reference.run(config, weights, golden["input_ids"][row])
    depths = reference.exit_depths(steps.gate_logits, float(threshold))
    chosen = steps.hidden[depths - 1, np.arange(len(depths))]  # [T, C], each position at its own depth
    np.testing.assert_allclose(reference.head(weights, chosen), golden[f"logits_threshold_{threshold}"][row], atol=1e-4)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("row", [0, 1])
def test_greedy_continuation(golden, model, row, threshold):
    config, weights = model
    ids = golden["input_ids"][row, :PROMPT].tolist()
    for wanted in golden[f"greedy_threshold_{threshold}_row{row}"]:
        steps = reference.run(config, weights, np.array(ids))
        depth = reference.exit_depths(steps.gate_logits, float(threshold))[-1]
        ids.append(int(np.argmax(reference.head(weights, steps.hidden[depth - 1, -1]))))
        assert ids[-1] == wanted


def test_probabilities_of_loops_that_did_not_run_are_unknown():
    gates = np.array([[0.0, 0.0]])
    np.testing.assert_allclose(reference.exit_probabilities(gates, 4), [[0.5, 0.25, np.nan, np.nan]])
    np.testing.assert_allclose(reference.exit_probabilities(gates, 2), [[0.5, 0.5]])


def test_extreme_gates_stay_exact():
    gates = np.array([[800.0, 0.0], [-800.0, 800.0]])
    np.testing.assert_allclose(reference.exit_probabilities(gates, 2), [[1.0, 0.0], [0.0, 1.0]])
    assert reference.exit_depths(gates, 1.0).tolist() == [1, 2]  # the product underflows: certain is certain
    assert reference.exit_depths(np.array([[40.0, 0.0]]), 1.0).tolist() == [2]  # nearly certain is not
