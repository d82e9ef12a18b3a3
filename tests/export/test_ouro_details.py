"""What users stumble over in Ouro models: each a fact about published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from models import hf_config, hf_tensors, write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.arch.config import from_hf
from ouro_edge.arch.hf_fields import unknown_fields
from ouro_edge.cli import main
from ouro_edge.export.gguf.reader import canonical_name
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.export.tensor_names import parts_of


def published(**changes: Any) -> dict[str, Any]:
    """config.json of Ouro-1.4B as published, in transformers 4's form; None removes a field."""
    data = {
        "architectures": ["OuroForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
        "auto_map": {"AutoConfig": "configuration_ouro.OuroConfig"}, "early_exit_threshold": 1.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
        "layer_types": ["full_attention"] * 24, "max_position_embeddings": 65536, "max_window_layers": 28,
        "model_type": "ouro", "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "total_ut_steps": 4, "transformers_version": "4.55.0",
        "use_cache": True, "use_sliding_window": False, "vocab_size": 49152,
    } | changes  # fmt: skip
    return {name: value for name, value in data.items() if value is not None}


def test_configs_of_forks_in_the_form_of_transformers_5():
    """rope_theta inside rope_parameters, dtype for torch_dtype, no rope_scaling, no auto_map."""
    fork = published(
        rope_theta=None, torch_dtype=None, auto_map=None, dtype="bfloat16", transformers_version="5.3.0",
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}, pad_token_id=None, sliding_window=None,
    )  # fmt: skip
    assert from_hf(fork) == from_hf(published())
    assert unknown_fields(fork) == unknown_fields(published()) == []


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_weights_is_that_of_the_file(tmp_path, name, value):
    """Neither field changes what is read."""
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain"))
    checkpoint = write_checkpoint(tmp_path / "typed")
    fields = json.loads((checkpoint / "config.json").read_text()) | {name: value}
    (checkpoint / "config.json").write_text(json.dumps(fields))
    opened = open_checkpoint(checkpoint)
    assert opened.config == plain.config and opened.notes == ()
    np.testing.assert_array_equal(opened.weights["layers.0.q_proj"], plain.weights["layers.0.q_proj"])


def test_answers_end_at_both_stop_ids():
    """Base repositories name only 0, chats end with 2."""
    assert from_hf(published()).stop_token_ids == (0, 2)
    assert from_hf(published(eos_token_id=2)).stop_token_ids == (0, 2)
    assert from_hf(published(eos_token_id=[0, 2])).stop_token_ids == (0, 2)


def test_post_attention_layernorm_precedes_the_feed_forward_part():
    """In Ouro the norm after attention is input_layernorm_2; in GGUF files that is post_attention_norm."""
    config = from_hf(hf_config())
    names = {
        "input_layernorm": "attn_norm",
        "input_layernorm_2": "attn_post_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_attention_layernorm_2": "ffn_post_norm",
    }
    for published_name, name in names.items():
        assert [part.name for part in parts_of(f"model.layers.1.{published_name}.weight", config)] == [
            f"layers.1.{name}"
        ]
    gguf = {"attn_norm": "attn_norm", "post_attention_norm": "attn_post_norm", "ffn_norm": "ffn_norm",
            "post_ffw_norm": "ffn_post_norm"}  # fmt: skip
    for gguf_name, name in gguf.items():
        assert canonical_name(f"blk.1.{gguf_name}.weight", True) == f"layers.1.{name}"
    tensors = hf_tensors(hf_config())
    assert "model.layers.0.input_layernorm_2.weight" in tensors


@pytest.mark.parametrize(("name", "told"), [("Ouro-2.6B-Thinking-Fixed", True), ("ouro_1.4b", True), ("Courou", False)])
@pytest.mark.parametrize("format", ["checkpoint", "bundle", "gguf"])
def test_a_single_pass_that_is_called_ouro(tmp_path, name, told, format):
    """Conversions to a plain transformer keep the name, and run the layers once."""
    path: Path = write_checkpoint(tmp_path / name, model_type="llama")
    if format != "checkpoint":
        out = tmp_path / ("out.gguf" if format == "gguf" else "out")
        path = ouro_edge.export(path, out, precision="fp32", format=format).path
    if format == "checkpoint":
        notes = open_checkpoint(path).notes
    else:
        with ouro_edge.load(path) as model:
            notes = model.text.notes
    assert any("called Ouro, but it is a llama model that runs its layers once" in note for note in notes) is told


def test_looped_models_get_no_such_note(tmp_path):
    assert open_checkpoint(write_checkpoint(tmp_path / "Ouro-1.4B")).notes == ()


@pytest.mark.parametrize(("eos", "told"), [(0, True), (2, False)])
def test_a_chat_with_a_base_model_gets_a_hint(tmp_path, eos, told):
    """Base models have a chat template, with which they answer worse."""
    checkpoint = add_tokenizer(write_checkpoint(tmp_path / "model", eos_token_id=eos, vocab_size=320))
    out = ouro_edge.export(checkpoint, tmp_path / "out", precision="fp32").path

    def stderr(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["run", str(out), "-p", "a", "-n", "1", *arguments])
        assert result.exit_code == 0, result.output
        return result.stderr

    assert ("base models" in stderr()) is told
    assert "base models" not in stderr("--raw")
