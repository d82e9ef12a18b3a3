"""Writes a config.json for a model that has none, such as one from a GGUF file."""

from __future__ import annotations

from typing import Any

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.rope_fields import rope_fields


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A Hugging Face config.json for a model without one (read from a GGUF file); `from_hf` reads it back."""
    eos = config.eos_token_ids
    data: dict[str, Any] = {
        "model_type": config.model_type,
        "architectures": [config.family.architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_fields(config.rope_scaling),
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "pad_token_id": config.pad_token_id,
    }
    if config.family.loops_field:
        data[config.family.loops_field] = config.loops
    if config.family.gate:
        data["early_exit_threshold"] = config.exit_threshold
    if config.family.skips_loop_norm:
        data["skip_loop_final_norm"] = not config.loop_norm
    if config.family.write is not None:
        data |= config.family.write(config)
    return data
