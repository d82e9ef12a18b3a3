"""Writes a checkpoint with the same function as a quantised .gguf file, whose weights are on no grid.

    python benchmarks/off_grid.py FILE.gguf OUT [--sigma 0.25] [--seed 7]

The weights of a 4-bit file are on the grid of its blocks, so that quantising them again looks better than it is. Here
channels are rescaled where one matrix cancels what the other does: a norm and the matrices that read it, up and down, a
query and its key (both halves of a rotary pair alike); values and the outputs that read them are rotated within a
head. Only for models without norms after attention and feed-forward (Llama).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ouro_edge.arch.config import ModelConfig
from ouro_edge.export.open_checkpoint import open_checkpoint

Array = NDArray[np.float32]
Layer = dict[str, Array]

PUBLISHED = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    **{f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}  # fmt: skip


def rescaled(config: ModelConfig, layer: Layer, sigma: float, rng: np.random.Generator) -> Layer:
    """The tensors of a layer with the same function; `sigma` is the standard deviation of the logarithm of a scale."""
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim

    def scales(*shape: int) -> Array:
        return np.exp(rng.normal(0, sigma, shape)).astype(np.float32)

    out = dict(layer)
    for norm, readers in (("attn_norm", ("q_proj", "k_proj", "v_proj")), ("ffn_norm", ("up_proj", "gate_proj"))):
        by = scales(config.hidden_size)
        out[norm] = out[norm] * by
        for name in readers:
            out[name] = out[name] / by
    by = scales(config.intermediate_size)
    out["up_proj"], out["down_proj"] = out["up_proj"] * by[:, None], out["down_proj"] / by
    half = scales(kv_heads, width // 2)
    pairs = np.concatenate((half, half), axis=1)
    out["k_proj"] = out["k_proj"] * pairs.reshape(-1, 1)
    out["q_proj"] = out["q_proj"] / np.repeat(pairs, heads // kv_heads, axis=0).reshape(-1, 1)
    values, outputs = out["v_proj"].copy(), out["o_proj"].copy()
    for kv in range(kv_heads):
        rotation = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
        values[kv * width : (kv + 1) * width] = rotation @ values[kv * width : (kv + 1) * width]
        for head in range(kv * heads // kv_heads, (kv + 1) * heads // kv_heads):
            outputs[:, head * width : (head + 1) * width] = outputs[:, head * width : (head + 1) * width] @ rotation.T
    return out | {"v_proj": values, "o_proj": outputs}


def write(source: Path, out: Path, sigma: float = 0.25, seed: int = 7) -> None:
    """Write the checkpoint with its tokenizer and chat template to the directory `out`."""
    checkpoint, rng = open_checkpoint(source), np.random.default_rng(seed)
    config, weights = checkpoint.config, checkpoint.weights
    if config.sandwich_norms or config.loops > 1:
        raise SystemExit(f"{source} has norms after attention and feed-forward, or loops; expected a Llama model")
    tensors = {"model.embed_tokens.weight": weights["embedding"], "model.norm.weight": weights["norm"]}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = weights["head"]
    for i in range(config.num_layers):
        layer = {name: weights[f"layers.{i}.{name}"] for name in PUBLISHED}
        for name, values in rescaled(config, layer, sigma, rng).items():
            tensors[f"model.layers.{i}.{PUBLISHED[name]}.weight"] = np.ascontiguousarray(values)
    out.mkdir(parents=True)
    for name, content in checkpoint.files.items():
        (out / name).write_bytes(content)
    stored = json.loads(checkpoint.files["config.json"]) | {"torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, out / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    write(given.source, given.out, given.sigma, given.seed)
