"""Writes a random checkpoint with published shapes, to measure speed and memory without real weights.

    python benchmarks/random_checkpoint.py OUT --shape NAME [--tokenizer DIR|tokenizer.json] [--seed 0]

`--help` lists the names: 1.4b and 2.6b are Ouro's.
Contains the published config, tensor names and safetensors layout; needs only NumPy and about 100 MB of memory.
Sampling 1.4e9 normals would take minutes, so every matrix consists of pieces of one pool of four million bfloat16
normals, at random offsets. Sizes and distributions are correct, but values repeat: do not measure compression or text
quality.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bf16 = NDArray[np.uint16]  # bits of bfloat16

POOL_VALUES = 4_194_301  # a prime, so that no width of a tensor divides it and rows differ
PIECE_VALUES = 1 << 20  # values taken from the pool at one random offset
GATE_SPREAD = 1.5  # standard deviation of a gate logit over hidden states of unit variance
GATE_BIAS = -0.5  # mean gate logit: with threshold 0.5, exits occur at every depth
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that differ between the published models, or that tests reduce."""

    layers: int
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 16
    head_dim: int = 128
    vocab: int = 49152
    positions: int = 65536
    family: str = "ouro"  # model_type
    kv_heads: int | None = None  # None: as many as heads
    stacks: tuple[int, ...] = ()  # layers of prelude, core and coda of a Raven model


SHAPES = {
    "1.4b": Shape(layers=24),
    "2.6b": Shape(layers=48),
    "nanbeige4.2-3b": Shape(
        layers=22,
        hidden=3072,
        intermediate=10752,
        heads=48,
        kv_heads=8,
        vocab=166144,
        positions=262144,
        family="nanbeige",
    ),
    "hrm-text-1b": Shape(  # layers of one of the two stacks
        layers=16,
        hidden=1536,
        intermediate=4096,
        heads=12,
        vocab=65536,
        positions=4096,
        family="hrm_text",
    ),
    "tiny": Shape(layers=3, hidden=64, intermediate=176, heads=4, head_dim=16, vocab=384, positions=512),
    "recurrent-llama-1b": Shape(
        layers=14,
        intermediate=8192,
        heads=32,
        head_dim=64,
        vocab=128256,
        positions=131072,
        kv_heads=8,
        stacks=(4, 6, 4),
        family="huginn_raven",
    ),
}


class CheckpointExists(Exception):
    """The destination exists, or the working directory of an interrupted run."""


def hf_config(shape: Shape) -> dict[str, Any]:
    """The published config.json of the shape's family; there is no generation_config.json."""
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


def _raven_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    kv = (shape.kv_heads or shape.heads) * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (shape.vocab, c)}
    for stack, layers in zip(("prelude", "core_block", "coda"), shape.stacks, strict=True):
        for i in range(layers):
            layer = f"transformer.{stack}.{i}."
            found |= {f"{layer}attn.Wqkv.weight": (q + 2 * kv, c), f"{layer}attn.proj.weight": (c, q)}
            found |= {f"{layer}mlp.fc.weight": (2 * f, c), f"{layer}mlp.proj.weight": (c, f)}
            found |= {f"{layer}norm_{n}.weight": (c,) for n in (1, 2)}
    found |= {"transformer.adapter.weight": (c, 2 * c), "transformer.ln_f.weight": (c,)}
    return found | {"lm_head.weight": (shape.vocab, c)}


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every tensor, in the order of the model's modules."""
    if shape.family in ("hrm_text", "huginn_raven"):
        return {"hrm_text": _hrm_tensors, "huginn_raven": _raven_tensors}[shape.family](shape)
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    kv, ouro = (shape.kv_heads or shape.heads) * shape.head_dim, shape.family == "ouro"
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, c)}
    for i in range(shape.layers):
        parts = {f"self_attn.{name}_proj": (q if name == "q" else kv, c) for name in "qkv"}
        parts["self_attn.o_proj"] = (c, q)
        parts |= {"mlp.gate_proj": (f, c), "mlp.up_proj": (f, c), "mlp.down_proj": (c, f)}
        found |= {f"model.layers.{i}.{name}.weight": size for name, size in parts.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{norm}.weight"] = (c,)
            if ouro:
                found[f"model.layers.{i}.{norm}_2.weight"] = (c,)
    found["model.norm.weight"] = (c,)
    if ouro:
        found["model.early_exit_gate.weight"], found["model.early_exit_gate.bias"] = (1, c), (1,)
    found["lm_head.weight"] = (shape.vocab, c)
    return found


def _hrm_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Two stacks of layers without norms; attention and feed-forward matrices are fused."""
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, c), "model.z_L_init": (c,)}
    parts = {
        "attn.gqkv_proj": (4 * q, c),
        "attn.o_proj": (c, q),
        "mlp.gate_up_proj": (2 * f, c),
        "mlp.down_proj": (c, f),
    }
    for stack in "LH":
        for i in range(shape.layers):
            found |= {f"model.{stack}_module.layers.{i}.{name}.weight": size for name, size in parts.items()}
    found["lm_head.weight"] = (shape.vocab, c)
    return found


def write(
    out: Path,
    shape: Shape,
    *,
    tokenizer: Path | None = None,
    seed: int = 0,
    shard_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint next to `out` and rename it; `progress(bytes done, bytes in all)` is called meanwhile.

    One model.safetensors if it fits in `shard_bytes`, otherwise shards with an index, as in transformers. The values
    depend only on the seed, not on the shards. A tokenizer with more ids than the shape extends the vocabulary.
    CheckpointExists when `out` is not empty.
    """
    partial = out.with_name(out.name + ".partial")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointExists(f"{out} is not empty; give a new directory or delete this one")
    if partial.exists():
        raise CheckpointExists(f"{partial} is left from an interrupted run; delete it")
    files = _tokenizer_files(tokenizer) if tokenizer else {}
    if "tokenizer.json" in files:
        ids = _vocabulary(files["tokenizer.json"])
        shape = Shape(**{f: getattr(shape, f) for f in Shape.__slots__} | {"vocab": max(ids, shape.vocab)})
    partial.mkdir(parents=True)
    try:
        for name, data in files.items():
            (partial / name).write_bytes(data)
        _write_json(partial / "config.json", hf_config(shape))
        _write_weights(partial, shape, seed, shard_bytes, progress or (lambda done, total: None))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def to_bf16(values: NDArray[np.float32]) -> Bf16:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Values:
    """The source of values: one pool of normals for matrices, and a separate generator per small tensor."""

    def __init__(self, seed: int, hidden: int) -> None:
        self.seed, self.hidden = seed, hidden
        self.pool = to_bf16(np.random.default_rng(seed).standard_normal(POOL_VALUES, np.float32) * np.float32(0.02))

    def pieces(self, name: str, index: int, size: tuple[int, ...]) -> Iterator[Bf16]:
        """The values of a tensor in pieces; `index` is its position among all tensors."""
        rng = np.random.default_rng([self.seed, index])
        count = math.prod(size)
        if name.endswith("early_exit_gate.bias"):
            yield to_bf16(np.full(1, GATE_BIAS, np.float32))
        elif name.endswith("early_exit_gate.weight"):
            yield to_bf16(rng.standard_normal(count, np.float32) * np.float32(GATE_SPREAD / self.hidden**0.5))
        elif len(size) == 1:
            yield to_bf16(1 + rng.standard_normal(count, np.float32) * np.float32(0.1))
        else:
            for start in range(0, count, PIECE_VALUES):
                offset = int(rng.integers(POOL_VALUES - PIECE_VALUES))
                yield self.pool[offset : offset + min(PIECE_VALUES, count - start)]


def _write_weights(
    folder: Path, shape: Shape, seed: int, shard_bytes: int, progress: Callable[[int, int], None]
) -> None:
    sizes = tensors(shape)
    order = {name: index for index, name in enumerate(sizes)}
    bytes_of = {name: 2 * math.prod(size) for name, size in sizes.items()}
    shards: list[list[str]] = [[]]
    for name in sizes:  # greedy and in order, as transformers shards
        if shards[-1] and sum(bytes_of[n] for n in shards[-1]) + bytes_of[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    total, done = sum(bytes_of.values()), 0
    values = Values(seed, shape.hidden)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        single = len(shards) == 1
        file = folder / ("model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in sorted(names):
            end = offset + bytes_of[name]
            header[name] = {"dtype": "BF16", "shape": sizes[name], "data_offsets": [offset, end]}
            weight_map[name], offset = file.name, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with file.open("xb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in sorted(names):
                for piece in values.pieces(name, order[name], sizes[name]):
                    stream.write(piece.astype("<u2", copy=False).data)
                done += bytes_of[name]
                progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _tokenizer_files(source: Path) -> dict[str, bytes]:
    folder = source if source.is_dir() else source.parent
    names = TOKENIZER_FILES if source.is_dir() else (source.name,)
    files = {n: (folder / n).read_bytes() for n in names if (folder / n).is_file()}
    if "tokenizer.json" not in files:
        raise FileNotFoundError(f"{source} is neither a tokenizer.json nor a directory with one")
    return files


def _vocabulary(tokenizer_json: bytes) -> int:
    data = json.loads(tokenizer_json)
    ids = [*data["model"]["vocab"].values(), *(token["id"] for token in data.get("added_tokens") or ())]
    return 1 + max(map(int, ids))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a random checkpoint with published shapes.")
    parser.add_argument("out", type=Path, help="directory to create")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", type=Path, help="directory with a tokenizer.json, or the file itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, help="largest file in 1e9 bytes (default: 5, as published)"
    )
    args = parser.parse_args()
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        if sys.stderr.isatty() or done == total:
            print(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB in {seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    try:
        write(args.out, SHAPES[args.shape], tokenizer=args.tokenizer, seed=args.seed,
              shard_bytes=int(args.shard_gb * 1e9), progress=progress)  # fmt: skip
    except (CheckpointExists, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
