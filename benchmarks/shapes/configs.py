"""config.json of every family, as published."""

from __future__ import annotations

from typing import Any

from shapes.sizes import Shape


def hf_config(shape: Shape) -> dict[str, Any]:
    """The published config.json of the shape's family."""
    makers = {"ouro": _ouro_config, "nanbeige": _nanbeige_config, "hrm_text": _hrm_config}
    makers["huginn_raven"] = _raven_config
    return makers[shape.family](shape)


def _common_config(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": shape.family,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _nanbeige_config(shape: Shape) -> dict[str, Any]:
    return _common_config(shape) | {
        "architectures": ["NanbeigeForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_loops": 2,
        "kv_channels": shape.head_dim,
        "rms_norm_eps": 1e-05,
        "rope_theta": 70000000.0,
        "rope_scaling": None,
        "skip_loop_final_norm": False,
        "loop_loss_weights": [],
        "bos_token_id": 166100,
        "eos_token_id": 166101,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def _hrm_config(shape: Shape) -> dict[str, Any]:
    high, low = 2, 3
    return _common_config(shape) | {
        "architectures": ["HrmTextForCausalLM"],
        "num_layers_per_stack": shape.layers,
        "num_hidden_layers": shape.layers * high * (low + 1),
        "H_cycles": high,
        "L_cycles": low,
        "L_bp_cycles": [0, 3],
        "embedding_scale": 39.191835884530846,
        "prefix_lm": True,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "bos_token_id": 6,
        "eos_token_id": 11,
        "pad_token_id": 5,
        "dtype": "bfloat16",
    }


def _ouro_config(shape: Shape) -> dict[str, Any]:
    """Of the base models: token ids 0, all loops."""
    return {
        "architectures": ["OuroForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_ouro.OuroConfig",
            "AutoModel": "modeling_ouro.OuroModel",
            "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
        },
        "bos_token_id": 0,
        "early_exit_threshold": 1.0,
        "eos_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": shape.positions,
        "max_window_layers": 28,
        "model_type": "ouro",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "total_ut_steps": 4,
        "transformers_version": "4.55.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def _raven_config(shape: Shape) -> dict[str, Any]:
    """config.json as the conversion of a Llama writes it, which keeps the fields of Huginn."""
    return {
        "architectures": ["RavenForCausalLM"],
        "bias": False,
        "block_class_name": "SandwichBlock",
        "block_size": 4096,
        "head_dim": shape.head_dim,
        "init_values": {"std": 0.0087, "embed_scale": 1.0},
        "injection_type": "linear",
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "mean_recurrence": 4,
        "mlp_class_name": "GatedMLP",
        "model_type": "huginn_raven",
        "n_embd": shape.hidden,
        "n_heads": shape.heads,
        "n_layers": shape.layers,
        "n_layers_in_coda": shape.stacks[2],
        "n_layers_in_prelude": shape.stacks[0],
        "n_layers_in_recurrent_block": shape.stacks[1],
        "nonlin_name": "SiLU",
        "norm_class_name": "RMSNorm_llama",
        "norm_eps": 1e-05,
        "num_key_value_heads": shape.kv_heads,
        "padded_vocab_size": shape.vocab,
        "qk_bias": False,
        "rope_base": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "test_time_noise": 0,
        "tie_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "vocab_size": shape.vocab,
    }
