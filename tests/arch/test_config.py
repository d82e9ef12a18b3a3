"""config.json is read strictly: what is missing, unknown or not implemented is named."""

from __future__ import annotations

import json
import os

import pytest
from models import GOLDEN, hf_config

from ouro_edge.arch.config import ModelConfig, from_hf, read_json_object, to_hf
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
        {"rope_scaling": {"type": "yarn", "factor": 4}},
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
        from_hf({**data, "rope_parameters": {"rope_theta": theta, "rope_type": "yarn", "factor": 2}})


@pytest.mark.parametrize("model_type", ["ouro", "llama"])
def test_round_trips(model_type):
    config = from_hf(hf_config(model_type=model_type, eos_token_id=[2, 5]))
    assert from_hf(to_hf(config)) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_llama_needs_its_activation_too():
    with pytest.raises(ConfigError, match="hidden_act"):
        from_hf(hf_config(model_type="llama", hidden_act=None))


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
