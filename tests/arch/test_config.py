"""config.json is read strictly: what is missing, unknown or not implemented is named."""

from __future__ import annotations

import json
import os

import pytest
from models import GOLDEN, hf_config

from ouro_edge.arch.config import ModelConfig, from_hf
from ouro_edge.arch.hf_fields import unknown_fields
from ouro_edge.arch.json_object import parse_json_object, read_json_object
from ouro_edge.arch.to_hf import to_hf
from ouro_edge.errors import ConfigError
from ouro_edge.runtime.backend.kv import kv_bytes_per_token


def test_published_sizes_are_read():
    config = from_hf({
        "architectures": ["OuroForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
        "auto_map": {"AutoConfig": "configuration_ouro.OuroConfig"}, "early_exit_threshold": 1.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
        "layer_types": ["full_attention"] * 24, "max_position_embeddings": 65536, "max_window_layers": 28,
        "model_type": "ouro", "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "total_ut_steps": 4, "transformers_version": "4.55.0",
        "use_cache": True, "use_sliding_window": False, "vocab_size": 49152,
    })  # fmt: skip
    assert (config.loops, config.num_layers, config.head_dim, config.has_gate) == (4, 24, 128, True)
    assert config.stop_token_ids == (0, 2)
    assert kv_bytes_per_token(config, "fp32") == 1.5 * 2**20
    assert kv_bytes_per_token(config, "int4") == 192 * 2**10


def test_head_dim_follows_from_the_heads_when_absent():
    assert from_hf(hf_config(head_dim=None)).head_dim == 12
    with pytest.raises(ConfigError, match="head_dim"):
        from_hf(hf_config(head_dim=None, num_attention_heads=7))


@pytest.mark.parametrize(
    "name", sorted(set(hf_config()) - {"head_dim", "bos_token_id", "eos_token_id", "pad_token_id"})
)
def test_a_missing_field_is_named(name):
    data = hf_config()
    del data[name]
    with pytest.raises(ConfigError, match=name):
        from_hf(data)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen3"},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"type": "dynamic", "factor": 4}},
        {"use_sliding_window": True},
        {"attention_bias": True},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"early_exit_step": 2},
        {"num_experts": 8},
        {"hidden_size": "48"},
        {"hidden_size": 0},
        {"hidden_size": True},
        {"vocab_size": 10**12},
        {"num_key_value_heads": 3},
        {"head_dim": 15},
        {"rms_norm_eps": 0},
        {"rope_theta": -1},
        {"early_exit_threshold": 2},
        {"tie_word_embeddings": "no"},
        {"eos_token_id": "2"},
        {"layer_types": True},
        {"layer_types": 3},
        {"rope_interleaved": True},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_a_value_that_is_not_implemented_is_named(change):
    with pytest.raises(ConfigError, match=next(iter(change)).removeprefix("num_")):
        from_hf({**hf_config(), **change})


def test_transformers_5_rope_parameters():
    data = hf_config()
    theta = data.pop("rope_theta")
    assert from_hf({**data, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}).rope_theta == theta
    with pytest.raises(ConfigError, match="rope_parameters"):
        from_hf({**data, "rope_parameters": {"rope_theta": theta, "rope_type": "dynamic", "factor": 2}})


@pytest.mark.parametrize("model_type", ["ouro", "llama"])
def test_round_trips(model_type):
    config = from_hf(hf_config(model_type=model_type, eos_token_id=[2, 5]))
    assert from_hf(to_hf(config)) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


HARMLESS = {
    "unsloth_fixed": True, "unsloth_version": "2024.9", "_attn_implementation_autoset": True, "id2label": {"0": "A"},
    "_flash_attn_2_enabled": True, "max_sequence_length": 2048, "gradient_checkpointing": False, "label2id": {"A": 0},
    "_commit_hash": "abc", "attn_implementation": "sdpa", "output_attentions": False, "neftune_noise_alpha": 5,
    "temperature": 0.7, "torchscript": False, "colour": "x", "use_flash_attn": True, "mlp_bias": None,
    "attention_bias": None, "embedding_multiplier": 1.0, "num_experts": 0, "partial_rotary_factor": 1.0,
    "hidden_dropout_prob": 0.0, "quantization_config": None, "qk_norm": False, "logit_scale": 1,
    "ignore_keys_at_rope_validation": ["x"],
    "use_memory_efficient_attention": True, "use_kv_cache": True, "summary_activation": "x", "output_scores": False,
    "weight_decay": 0.1, "warmup_steps": 10, "resid_pdrop": 0.1, "use_rms_norm": True, "router_aux_loss_coef": 0.001,
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["ouro", "llama"])
@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_change_nothing_are_ignored(name, model_type):
    data = hf_config(model_type=model_type)
    assert from_hf({**data, name: HARMLESS[name]}) == from_hf(data)


def test_only_fields_about_which_nothing_is_known_need_a_note():
    assert unknown_fields({**hf_config(), **HARMLESS}) == [
        "colour", "embedding_multiplier", "logit_scale", "neftune_noise_alpha", "num_experts", "qk_norm",
        "use_rms_norm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("qk_norm", True), ("logit_scale", 0.1),
        ("embedding_multiplier", 12), ("residual_multiplier", 0.2), ("attention_multiplier", 0.1), ("alibi", True),
        ("partial_rotary_factor", 0.5), ("no_rope_layers", [1, 0]), ("num_local_experts", 8), ("clip_qkv", 8.0),
        ("scale_emb", 12), ("scale_depth", 1.4), ("logits_scaling", 8.0), ("use_qkv_bias", True), ("rope_ratio", 2),
        ("quantization_config", {"bits": 4}), ("parallel_residual", True), ("query_pre_attn_scalar", 256),
        ("rotary_pct", 0.25), ("norm_after", True), ("mup_width_scale", 2.0), ("hidden_activation", "gelu"),
        ("num_attention_sinks", 4), ("cross_attention_layers", [3]), ("activation_function", "relu"),
        ("use_rms_norm", False), ("use_rope", False),
    ],
)  # fmt: skip
def test_unknown_fields_that_can_change_the_computation_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        from_hf(hf_config(model_type="llama", **{name: value}))


def test_llama_has_documented_defaults():
    data = hf_config(model_type="llama")
    for name in ("rope_theta", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
                 "max_position_embeddings", "rope_scaling"):  # fmt: skip
        data.pop(name, None)
    config = from_hf(data)
    assert config.rope_theta == 10000 and config.num_kv_heads == config.num_heads and config.rms_norm_eps == 1e-6
    assert config.tie_word_embeddings is False and config.max_positions == 2048


@pytest.mark.parametrize(
    "rope",
    [{"type": "default"}, {"rope_type": "default"}, {"type": "linear", "factor": 1.0},
     {"type": "dynamic", "factor": 1},
     {"rope_type": "default", "factor": 1.0}, {"factor": 1.0}, {}, {"rope_type": "llama3", "factor": 1.0}],
)  # fmt: skip
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_positions_that_are_not_scaled(rope, field):
    assert from_hf({**hf_config(), field: rope}) == from_hf(hf_config())


@pytest.mark.parametrize(
    "rope",
    [{"type": "dynamic", "factor": 2.0}, {"type": "linear"}, {"factor": 4.0},
     {"type": "longrope", "short_factor": [1.0]},
     {"rope_type": "default", "partial_rotary_factor": 0.5},
     {"rope_type": "default", "factor": 1.0, "attention_factor": 2},
     "linear", {"full_attention": {"rope_type": "default"}}],
)  # fmt: skip
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_positions_that_cannot_be_scaled_are_refused(rope, field):
    with pytest.raises(ConfigError, match=field):
        from_hf({**hf_config(), field: rope})


def test_other_spellings():
    assert from_hf(hf_config(hidden_act="swish")) == from_hf(hf_config())
    config = from_hf(hf_config(pad_token_id=-1, bos_token_id=-1, eos_token_id=[-1, 2]))
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_ids) == (None, None, (2,))
    assert parse_json_object(b"\xef\xbb\xbf{}", "config.json") == {}


def test_rope_parameters_may_be_null():
    assert from_hf({**hf_config(), "rope_parameters": None}) == from_hf(hf_config())


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id", "model_type"])
@pytest.mark.parametrize("value", [{"a": 1}, "x", [1], -1, True])
def test_ids_and_type_of_a_manifest_are_checked(name, value):
    with pytest.raises(ConfigError, match=name):
        ModelConfig.from_dict({**from_hf(hf_config()).to_dict(), name: value})


def test_an_unknown_or_missing_field_of_a_manifest_is_named():
    data = from_hf(hf_config()).to_dict()
    with pytest.raises(ConfigError, match="colour"):
        ModelConfig.from_dict({**data, "colour": 1})
    del data["loops"]
    with pytest.raises(ConfigError, match="loops"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", "[" * 100_000, b"\xff\xfe"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json_object(file)


def test_the_golden_config_is_read():
    assert from_hf(read_json_object(GOLDEN / "config.json")).loops == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_pipe_or_a_huge_file_is_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file of at most"):
        read_json_object(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="not a regular file of at most"):
        read_json_object(tmp_path / "huge")
