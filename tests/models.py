"""Small random checkpoints in Hugging Face form, and the oracle's answers about them. Used by many tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ouro_edge.arch import reference
from ouro_edge.export.open_checkpoint import open_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "ouro-tiny"

_CONFIG: dict[str, Any] = {
    "model_type": "ouro",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "total_ut_steps": 4,
    "early_exit_threshold": 1.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def hf_config(**changes: Any) -> dict[str, Any]:
    """A config.json of a small model; llama drops what only Ouro has."""
    config = {**_CONFIG, **changes}
    if config["model_type"] == "llama":
        del config["total_ut_steps"], config["early_exit_threshold"]
    return {name: value for name, value in config.items() if value is not None}


def hf_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the published names."""
    rng = np.random.default_rng(seed)
    c, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d = config.get("head_dim") or c // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, c).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(v, c) * c**0.5, "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(v, c) * 2
    names = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "ouro":
        tensors["model.early_exit_gate.weight"] = matrix(1, c)
        tensors["model.early_exit_gate.bias"] = np.array([-0.7], np.float32)
        names += ["input_layernorm_2", "post_attention_layernorm_2"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows, columns in (
            ("self_attn.q_proj", q, c), ("self_attn.k_proj", kv, c), ("self_attn.v_proj", kv, c),
            ("self_attn.o_proj", c, q), ("mlp.gate_proj", f, c), ("mlp.up_proj", f, c), ("mlp.down_proj", c, f),
        ):  # fmt: skip
            tensors[f"{layer}{name}.weight"] = matrix(rows, columns)
        for name in names:
            tensors[f"{layer}{name}.weight"] = norm()
    return tensors


def write_checkpoint(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A directory with config.json and model.safetensors."""
    path.mkdir(parents=True, exist_ok=True)
    config = hf_config(**changes)
    (path / "config.json").write_text(json.dumps(config))
    save_file(hf_tensors(config, seed), path / "model.safetensors")
    return path


def oracle(checkpoint: Path, ids: list[int]) -> tuple[np.ndarray, reference.Steps]:
    """Logits [R, T, V] of every loop, and the steps behind them, by the reference."""
    opened = open_checkpoint(checkpoint)
    weights = dict(opened.weights)
    weights.setdefault("head", weights["embedding"])
    steps = reference.run(opened.config, weights, np.array(ids))
    return reference.head(weights, steps.hidden), steps


__all__ = ["GOLDEN", "hf_config", "hf_tensors", "oracle", "write_checkpoint"]
