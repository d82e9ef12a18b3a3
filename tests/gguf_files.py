"""Writes .gguf files in llama.cpp's schema for tests, independently of the package's own writer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array, tensor_shapes

Q = GGMLQuantizationType
ConfigAndWeights = tuple[ModelConfig, dict[str, Array]]

NAMES = {
    "attn_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "attn_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm",
}
TOP = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}


def gguf_name(name: str) -> str:
    """GGUF's name of one of our tensors."""
    if name in TOP:
        return f"{TOP[name]}.weight"
    _, layer, part = name.split(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def permute(values: Array, heads: int) -> Array:
    """llama.cpp's `permute`: the halves of every head interleaved."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: dict[str, Array],
    kind: GGMLQuantizationType = Q.F32,
    gate: bool = True,
    meta: Callable[[GGUFWriter], None] = lambda writer: None,
    skip: frozenset[str] = frozenset(),
    quantize: Callable[[Array, GGMLQuantizationType], np.ndarray] = quants.quantize,
) -> Path:
    """Write a model in llama.cpp's schema; `meta` adds keys, `skip` names keys and tensors to leave out."""
    arch = config.model_type
    writer = GGUFWriter(path, arch)
    keys: dict[str, tuple[str, Any]] = {
        f"{arch}.block_count": ("uint32", config.num_layers),
        f"{arch}.context_length": ("uint32", config.max_positions),
        f"{arch}.embedding_length": ("uint32", config.hidden_size),
        f"{arch}.feed_forward_length": ("uint32", config.intermediate_size),
        f"{arch}.attention.head_count": ("uint32", config.num_heads),
        f"{arch}.attention.head_count_kv": ("uint32", config.num_kv_heads),
        f"{arch}.attention.key_length": ("uint32", config.head_dim),
        f"{arch}.attention.value_length": ("uint32", config.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": ("float32", config.rms_norm_eps),
        f"{arch}.rope.freq_base": ("float32", config.rope_theta),
        f"{arch}.rope.dimension_count": ("uint32", config.head_dim),
        f"{arch}.vocab_size": ("uint32", config.vocab_size),
        "tokenizer.ggml.bos_token_id": ("uint32", 1),
        "tokenizer.ggml.eos_token_id": ("uint32", 2),
        "tokenizer.ggml.padding_token_id": ("uint32", 0),
    }
    if arch == "ouro":
        keys[f"{arch}.num_loops"] = ("uint32", config.loops)
        keys[f"{arch}.skip_loop_final_norm"] = ("bool", False)
        if gate:
            keys["ouro_edge.exit_gate.weight"] = ("array", weights["exit_gate.weight"][0].tolist())
            keys["ouro_edge.exit_gate.bias"] = ("array", weights["exit_gate.bias"].tolist())
            keys["ouro_edge.exit_threshold"] = ("float32", config.exit_threshold)
    for key, (form, value) in keys.items():
        if key not in skip:
            getattr(writer, f"add_{form}")(key, value)
    meta(writer)
    for name, values in weights.items():
        if name.startswith("exit_gate") or name in skip:
            continue
        if name.endswith("q_proj"):
            values = permute(values, config.num_heads)
        if name.endswith("k_proj"):
            values = permute(values, config.num_kv_heads)
        stored = kind if values.ndim == 2 and values.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 else Q.F32
        writer.add_tensor(gguf_name(name), quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_llama(seed: int = 0) -> ConfigAndWeights:
    """A plain transformer with grouped heads, tied embeddings and a head_dim that is not hidden / heads."""
    config = ModelConfig(
        model_type="llama", vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=6,
        num_kv_heads=2, head_dim=8, loops=1, max_positions=64, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, sandwich_norms=False, has_gate=False, exit_threshold=1.0, bos_token_id=1,
        eos_token_ids=(2,), pad_token_id=0,
    )  # fmt: skip
    random = np.random.default_rng(seed)
    return config, {n: random.standard_normal(s, np.float32) for n, s in tensor_shapes(config).items()}


def raw_gguf(tensors: list[tuple[str, tuple[int, ...], int, bytes]], alignment: int = 32) -> bytes:
    """A GGUF of tensors alone, given as (name, shape, type id, bytes)."""
    infos, data = b"", b""
    for name, shape, kind, payload in tensors:
        infos += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        infos += struct.pack("<IQ", kind, len(data))
        data += payload + bytes(-len(payload) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + infos
    return head + bytes(-len(head) % alignment) + data


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
