"""Scaled channels: the same function, inputs of more equal size, and less error in eight bits."""

from __future__ import annotations

import numpy as np
import pytest
from models import write_checkpoint
from safetensors.numpy import load_file, save_file
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.fitting.equalize import equalized
from ouro_edge.measure.quality import evaluate

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
TEXT = "the cat sat on the mat and the dog ran to the door. " * 20


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A checkpoint with channels thirty times as large as others; the matrices that read them make up for it."""
    path = write_checkpoint(tmp_path_factory.mktemp("uneven"), **SIZES)
    tensors, rng = load_file(path / "model.safetensors"), np.random.default_rng(1)

    def factors(count):
        return np.where(rng.random(count) < 0.1, 30, 1).astype(np.float32)

    for i in range(2):
        layer = f"model.layers.{i}."
        for norm, readers in (("input_layernorm", ("self_attn.q", "self_attn.k", "self_attn.v")),
                              ("post_attention_layernorm", ("mlp.gate", "mlp.up"))):  # fmt: skip
            by = factors(64)
            tensors[f"{layer}{norm}.weight"] *= by
            for name in readers:
                tensors[f"{layer}{name}_proj.weight"] /= by
        by = factors(96)
        tensors[f"{layer}mlp.up_proj.weight"] *= by[:, None]
        tensors[f"{layer}mlp.down_proj.weight"] /= by
    save_file(tensors, path / "model.safetensors")
    return add_tokenizer(path)


def test_the_function_is_the_same(tmp_path):
    weights = open_checkpoint(write_checkpoint(tmp_path / "even", **SIZES)).weights
    ids = np.random.default_rng(0).integers(0, 320, (2, 64))
    scaled = equalized(weights, ids)
    expected, found = (reference.run(weights.config, w, ids[0]) for w in (weights, scaled))
    np.testing.assert_allclose(found.hidden, expected.hidden, atol=3e-5)
    np.testing.assert_allclose(found.gate_logits, expected.gate_logits, atol=3e-5)
    changed = {name.split(".")[-1] for name in weights if not np.array_equal(weights[name], scaled[name])}
    assert changed == {"attn_norm", "ffn_norm", *(f"{part}_proj" for part in ("q", "k", "v", "gate", "up", "down"))}
    np.testing.assert_array_equal(scaled.rows("layers.1.up_proj", 5, 9), scaled["layers.1.up_proj"][5:9])


def test_factors_are_the_square_root_of_the_size_of_a_channel(tmp_path):
    """Relative to the geometric mean, in steps of 2**(1/4); with one loop, whose first inputs are known."""
    weights = open_checkpoint(write_checkpoint(tmp_path / "llama", model_type="llama", **SIZES)).weights
    ids = np.random.default_rng(0).integers(0, 320, (1, 64))
    rows = reference.rms_norm(weights["embedding"][ids[0]], weights["layers.0.attn_norm"], weights.config.rms_norm_eps)
    size = np.log2(np.sqrt(np.square(rows).mean(axis=0)))
    expected = 2 ** (np.rint(4 * 0.5 * (size - size.mean())) / 4)
    scaled = equalized(weights, ids)
    np.testing.assert_allclose(weights["layers.0.attn_norm"] / scaled["layers.0.attn_norm"], expected, rtol=1e-5)
    np.testing.assert_allclose(scaled["layers.0.q_proj"], weights["layers.0.q_proj"] * expected, rtol=1e-5)
    assert len(np.unique(np.round(expected, 4))) > 2


def test_a_model_in_eight_bits_is_closer_to_its_checkpoint(uneven, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    settings = {"precision": "int8", "calibration": None}
    ouro_edge.export(uneven, tmp_path / "plain", **settings)
    ouro_edge.export(uneven, tmp_path / "scaled", rounding=WeightCalibration(optional=True), **settings)
    manifest = open_bundle(tmp_path / "scaled").manifest
    assert manifest.rounding["method"] == "scaled channels"
    assert "Channels were scaled, so that activations lose less" in (tmp_path / "scaled" / "README.md").read_text()
    plain, scaled = (evaluate(tmp_path / n, against=uneven, text=TEXT, windows=2).best for n in ("plain", "scaled"))
    assert scaled.divergence.mean < 0.6 * plain.divergence.mean
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("plain", "scaled")]
    assert sizes[0] == sizes[1]
    scaled_gain = StoredWeights(open_bundle(tmp_path / "scaled"))["layers.0.ffn_norm"]
    assert not np.array_equal(scaled_gain, open_checkpoint(uneven).weights["layers.0.ffn_norm"])


def test_a_dead_channel_and_a_plain_transformer(tmp_path):
    path = write_checkpoint(tmp_path / "llama", model_type="llama", **SIZES)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][3] = 0
    save_file(tensors, path / "model.safetensors")
    weights = open_checkpoint(path).weights
    ids = np.random.default_rng(0).integers(0, 320, (1, 64))
    scaled = equalized(weights, ids)
    expected, found = (reference.run(weights.config, w, ids[0]).hidden for w in (weights, scaled))
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert np.isfinite(scaled["layers.0.q_proj"]).all()


def test_four_bits_keep_their_channels(uneven, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    ouro_edge.export(uneven, tmp_path / "out", rounding=WeightCalibration(rows=1024), calibration=None)
    gain = StoredWeights(open_bundle(tmp_path / "out"))["layers.0.ffn_norm"]
    np.testing.assert_array_equal(gain, open_checkpoint(uneven).weights["layers.0.ffn_norm"])
