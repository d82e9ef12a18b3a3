"""Random models for llama.cpp, in the types that `llama-quantize ... Q4_0` produces. Uses gguf.

Two kinds: Ouro's block in llama.cpp's looped architecture (`nanbeige`: a Llama that runs `num_loops` times, with the
final norm after each; it lacks Ouro's second norm of each half layer, which takes almost no time), and a dense Qwen3.
All tensors of a type are made from one pool of random blocks: sizes and operations are correct, values repeat.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]

_Q4_0 = 32, 18  # values and bytes of a block: a half-precision scale, then 32 numbers of 4 bits
_Q6_K = 256, 210  # 128 bytes of low bits, 64 of high bits, 16 scales, a half-precision scale of the scales


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder-only model; `loops` above 1 makes it a looped one."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    loops: int = 1
    tied: bool = False


def write_gguf(out: Path, shape: Shape, seed: int = 0) -> None:
    """Write the model file; what was there before stays until it is complete."""
    from gguf import GGMLQuantizationType, GGUFWriter

    arch = "nanbeige" if shape.loops > 1 else "qwen3"
    partial = out.with_name(out.name + ".partial")
    writer = GGUFWriter(partial, arch)
    writer.add_name(out.stem)
    writer.add_block_count(shape.layers)
    writer.add_context_length(65536)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(shape.vocab)
    _add_vocabulary(writer, shape.vocab)
    if shape.loops > 1:
        writer.add_uint32(f"{arch}.num_loops", shape.loops)
    pools: dict[Any, Blocks] = {}
    rng = np.random.default_rng(seed)
    head = "token_embd.weight" if shape.tied else "output.weight"
    for name, sizes in _tensors(shape).items():
        if len(sizes) == 1:
            writer.add_tensor(name, np.ones(sizes, np.float32))
            continue
        kind = GGMLQuantizationType.Q6_K if name == head and shape.hidden % 256 == 0 else GGMLQuantizationType.Q4_0
        values, size = _Q6_K if kind == GGMLQuantizationType.Q6_K else _Q4_0
        count = prod(sizes) // values
        if len(pools.get(kind, ())) < count:
            pools[kind] = _pool(kind == GGMLQuantizationType.Q6_K, size, count, rng)
        writer.add_tensor(name, pools[kind][:count].reshape(sizes[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)


def _add_vocabulary(writer: Any, count: int) -> None:
    """Special tokens, bytes and made-up words: llama-batched-bench reads the vocabulary, llama-bench does not."""
    from gguf import TokenType

    special, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{number:02X}>" for number in range(256)]
    tokens = [*special, *bytes_, *(f"word{number}" for number in range(count))][:count]
    types = [TokenType.CONTROL] * 3 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * count
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * count)
    writer.add_token_types(types[:count])


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.hidden)}
    for i in range(shape.layers):
        layer = {
            "attn_norm": (shape.hidden,),
            "attn_q": (queries, shape.hidden),
            "attn_k": (keys, shape.hidden),
            "attn_v": (keys, shape.hidden),
            "attn_output": (shape.hidden, queries),
            "ffn_norm": (shape.hidden,),
            "ffn_gate": (shape.intermediate, shape.hidden),
            "ffn_up": (shape.intermediate, shape.hidden),
            "ffn_down": (shape.hidden, shape.intermediate),
        }
        if shape.loops == 1:
            layer |= {"attn_q_norm": (shape.head_dim,), "attn_k_norm": (shape.head_dim,)}
        tensors |= {f"blk.{i}.{name}.weight": sizes for name, sizes in layer.items()}
    tensors["output_norm.weight"] = (shape.hidden,)
    if not shape.tied:
        tensors["output.weight"] = (shape.vocab, shape.hidden)
    return tensors


def _pool(k_quant: bool, size: int, count: int, rng: np.random.Generator) -> Blocks:
    """Blocks [count, size] of random numbers under a small scale."""
    pool = rng.integers(0, 256, (count, size), np.uint8)
    at = size - 2 if k_quant else 0
    pool[:, at : at + 2] = np.array([2e-5 if k_quant else 4e-3], np.float16).view(np.uint8)
    return pool
