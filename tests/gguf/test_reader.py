"""Reading GGUF: the golden written as an `ouro` file, text, names, and keys that may be absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_files import ConfigAndWeights, small_llama, write_gguf
from models import GOLDEN

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import tensor_shapes
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.reader import canonical_name, open_gguf
from ouro_edge.export.open_checkpoint import open_checkpoint


def test_golden_with_a_gate_comes_back_exactly(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    config, weights = golden_model
    checkpoint = open_gguf(write_gguf(tmp_path / "tiny.gguf", config, weights))
    assert checkpoint.config == config
    assert checkpoint.notes == (
        "no tokenizer in this file: a tokenizer is not rebuilt, so this model works on token ids only; put its "
        "tokenizer.json beside the file, or give it with --tokenizer",
    )
    assert set(checkpoint.weights) == set(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], values, err_msg=name)


def test_reference_through_gguf_matches_upstream(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    expected = np.load(GOLDEN / "expected.npz")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", *golden_model))
    for row, ids in enumerate(expected["input_ids"]):
        steps = reference.run(checkpoint.config, checkpoint.weights, ids)
        np.testing.assert_allclose(steps.gate_logits, expected["gate_logits"][row], atol=1e-4)
        for r in range(4):
            logits = reference.head(checkpoint.weights, steps.hidden[r])
            np.testing.assert_allclose(logits, expected[f"logits_step{r + 1}"][row], atol=1e-4)


def test_community_file_has_no_gate(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    config, weights = golden_model
    checkpoint = open_gguf(write_gguf(tmp_path / "tiny.gguf", config, weights, gate=False))
    assert (checkpoint.config.has_gate, checkpoint.config.loops) == (False, 4)
    assert "exit_gate.weight" not in checkpoint.weights
    assert any("no exit gate in this file" in note and "--gate-from" in note for note in checkpoint.notes)


def test_half_a_gate_is_refused(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    path = write_gguf(tmp_path / "t.gguf", *golden_model, skip=frozenset({"ouro_edge.exit_gate.bias"}))
    with pytest.raises(CheckpointError, match=r"lacks exit_gate\.bias"):
        open_gguf(path)


def test_scalar_bias_and_threshold(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    config, weights = golden_model

    def meta(writer: GGUFWriter) -> None:
        writer.add_float32("ouro_edge.exit_gate.bias", 0.25)
        writer.add_float32("ouro_edge.exit_threshold", 0.7)
        writer.add_float32("ouro_edge.kv_scale", 0.7)

    skip = frozenset({"ouro_edge.exit_gate.bias", "ouro_edge.exit_threshold"})
    checkpoint = open_gguf(write_gguf(tmp_path / "t.gguf", config, weights, meta=meta, skip=skip))
    np.testing.assert_array_equal(checkpoint.weights["exit_gate.bias"], [0.25])
    assert checkpoint.config.exit_threshold == 0.7
    assert "metadata of another version of ouro-edge is ignored: ouro_edge.kv_scale" in checkpoint.notes


def test_text_files_and_name(tmp_path: Path) -> None:
    def meta(writer: GGUFWriter) -> None:
        writer.add_name("../My Model: 1.4B/x")
        writer.add_chat_template("{{ 'é' }}")

    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", *small_llama(), meta=meta))
    assert checkpoint.name == "My-Model-1.4B-x"
    assert set(checkpoint.files) == {"config.json", "generation_config.json", "chat_template.jinja"}
    assert checkpoint.files["chat_template.jinja"] == "{{ 'é' }}".encode()
    assert json.loads(checkpoint.files["generation_config.json"]) == {
        "eos_token_id": [2], "bos_token_id": 1, "pad_token_id": 0
    }  # fmt: skip
    assert json.loads(checkpoint.files["config.json"])["head_dim"] == 8
    assert open_gguf(write_gguf(tmp_path / "my file.gguf", *small_llama())).name == "my-file"


def test_more_than_one_stop_token_and_ids_outside(tmp_path: Path) -> None:
    def meta(writer: GGUFWriter) -> None:
        writer.add_uint32("tokenizer.ggml.eot_token_id", 7)
        writer.add_uint32("tokenizer.ggml.padding_token_id", 0xFFFFFFFF)

    skip = frozenset({"tokenizer.ggml.padding_token_id"})
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", *small_llama(), meta=meta, skip=skip))
    assert (checkpoint.config.eos_token_ids, checkpoint.config.pad_token_id) == ((2, 7), None)
    assert any("4294967295 is outside the vocabulary of 40" in note for note in checkpoint.notes)


def test_absent_keys_with_a_meaning(tmp_path: Path) -> None:
    config, weights = small_llama()
    square = ModelConfig.from_dict(config.to_dict() | {"num_heads": 4, "num_kv_heads": 4})
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal(s, np.float32) for n, s in tensor_shapes(square).items()}
    absent = {"attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
              "vocab_size"}  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", square, weights, skip=frozenset(f"llama.{k}" for k in absent))
    assert open_gguf(path).config == square


def test_names() -> None:
    assert canonical_name("blk.3.post_attention_norm.weight", True) == "layers.3.attn_post_norm"
    assert canonical_name("blk.3.post_ffw_norm.weight", True) == "layers.3.ffn_post_norm"
    assert canonical_name("blk.3.ffn_norm.weight", True) == "layers.3.ffn_norm"
    assert canonical_name("blk.3.post_ffw_norm.weight", False) == "blk.3.post_ffw_norm.weight"
    assert canonical_name("blk.03.attn_q.weight", False) == "blk.03.attn_q.weight"
    assert canonical_name("output.weight", False) == "head"


def test_values_that_change_nothing(tmp_path: Path) -> None:
    """No base of the rotation means 10000; an entry for each layer may be equal to the others; a factor may be 1."""
    config, weights = small_llama()

    def meta(writer: GGUFWriter) -> None:
        writer.add_float32("llama.rope.scaling.attn_factor", 1.0)
        writer.add_array("llama.attention.head_count_kv", [2, 2])
        writer.add_array("llama.feed_forward_length", [64, 64])
        writer.add_array("llama.attention.sliding_window", [0, 0])
        writer.add_float32("llama.attention.layer_norm_epsilon", 1e-5)
        for key in ("pooling_type", "expert_shared_count", "nextn_predict_layers", "attention.key_length_mla"):
            writer.add_uint32(f"llama.{key}", 0)
        for key in ("attention.clamp_kqv", "attn_logit_softcapping", "final_logit_softcapping"):
            writer.add_float32(f"llama.{key}", 0.0)

    skip = frozenset({"llama.rope.freq_base", "llama.attention.head_count_kv", "llama.feed_forward_length"})
    assert open_gguf(write_gguf(tmp_path / "m.gguf", config, weights, meta=meta, skip=skip)).config == config


@pytest.mark.parametrize("name", ["sha256-1f2e", "model.bin", "MODEL.GGUF"])
def test_a_file_with_another_name_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / name, *small_llama())
    assert open_checkpoint(path).config == small_llama()[0]
    with ouro_edge.load(path, threads=1) as model:
        assert model.config.vocab_size == 40


def test_a_file_without_those_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"expected a directory with config\.json or a GGUF file"):
        open_checkpoint(tmp_path / "model.bin")
