"""int8 and int4 bundles against the reference fed with their own dequantised weights: packing without rounding."""

from __future__ import annotations

import numpy as np
import pytest
from models import GOLDEN, write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.runtime.exits.policies import FixedDepth

PROMPT = [5, 17, 3, 88, 41, 41, 7, 60, 12, 33, 2, 0, 95, 11]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("precision", "block_size"), [("int8", 16), ("int8", 128), ("int4", 32), ("int4", 64)])
@pytest.mark.parametrize("tied", [False, True])
def test_depth_one_follows_the_dequantised_reference(checkpoint_of, bundle_of, precision, block_size, symmetric, tied):
    """One loop, where the int8 rounding of activations has not been amplified yet."""
    checkpoint = checkpoint_of(tie_word_embeddings=tied, hidden_size=72, intermediate_size=200)
    path = bundle_of(checkpoint, precision, block_size=block_size, symmetric=symmetric)
    weights = StoredWeights(open_bundle(path))
    steps = reference.run(weights._bundle.config, weights, np.array(PROMPT))
    wanted = reference.head(weights, steps.hidden[0])
    with ouro_edge.load(path) as model:
        found = model.forward(PROMPT, exit=FixedDepth(1)).logits
    assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 0.05
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("precision", "method"), [("int4", "calibrated"), ("int8", "scaled channels")])
def test_calibrated_weights_are_packed_as_they_are_stored(tmp_path, monkeypatch, precision, method):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
    checkpoint = add_tokenizer(write_checkpoint(tmp_path / "checkpoint", **sizes))
    rounding = WeightCalibration(rows=1024, codes=precision == "int4")
    path = ouro_edge.export(
        checkpoint, tmp_path / "model", precision=precision, rounding=rounding, calibration=None
    ).path
    bundle = open_bundle(path)
    assert bundle.manifest.rounding["method"] == method
    weights = StoredWeights(bundle)
    wanted = reference.head(weights, reference.run(bundle.config, weights, np.array(PROMPT)).hidden[0])
    with ouro_edge.load(path) as model:
        found = model.forward(PROMPT, exit=FixedDepth(1)).logits
    assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 0.05


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_golden_model_at_every_depth(golden, bundle_of, precision):
    path = bundle_of(GOLDEN, precision)
    ids = golden["input_ids"][0]
    weights = StoredWeights(open_bundle(path))
    steps = reference.run(weights._bundle.config, weights, ids)
    with ouro_edge.load(path) as model:
        for depth in range(1, 5):
            wanted = reference.head(weights, steps.hidden[depth - 1])
            found = model.forward(ids.tolist(), exit=FixedDepth(depth)).logits
            assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 0.1


def test_quantised_weights_differ_from_the_checkpoint_by_rounding_only(bundle_of):
    from ouro_edge.export.open_checkpoint import open_checkpoint

    original = open_checkpoint(GOLDEN).weights
    for precision, least in (("int8", 40.0), ("int4", 18.0)):
        stored = StoredWeights(open_bundle(bundle_of(GOLDEN, precision)))
        for name, values in original.items():
            noise = np.square(values - stored[name]).mean()
            assert noise == 0 or 10 * np.log10(np.square(values).mean() / noise) > least, name


def test_prefill_equals_single_steps_up_to_rounding(bundle_of):
    with ouro_edge.load(bundle_of(GOLDEN, "int4")) as model:
        at_once, single = model.new_sequence(), model.new_sequence()
        at_once.append(PROMPT)
        for token in PROMPT:
            single.append([token])
            last = single.run_until_exit(FixedDepth(1)).hidden
        np.testing.assert_allclose(at_once.run_until_exit(FixedDepth(1)).hidden, last, atol=0.05)
