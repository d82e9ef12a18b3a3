"""Keys and tensors that are missing, extra, or not implemented are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_files import ConfigAndWeights, small_llama, write_gguf

from ouro_edge.errors import CheckpointError, ConfigError, OuroEdgeError
from ouro_edge.export.gguf.reader import open_gguf


@pytest.mark.parametrize(
    "key", ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon", "num_loops"],
)  # fmt: skip
def test_missing_key_is_named(tmp_path: Path, golden_model: ConfigAndWeights, key: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", *golden_model, skip=frozenset({f"ouro.{key}"}))
    with pytest.raises(ConfigError, match=re.escape(f"ouro.{key} is missing")):
        open_gguf(path)


REFUSED: list[tuple[str, str, Any, str]] = [
    ("bool", "llama.skip_loop_final_norm", True, "llama.skip_loop_final_norm is unknown"),
    ("uint32", "llama.expert_count", 8, "llama.expert_count is 8"),
    ("string", "llama.rope.scaling.type", "longrope", "rope.scaling.type is 'longrope'"),
    ("uint32", "llama.rope.scaling.type", 2, "llama.rope.scaling.type is 2; expected a text"),
    ("float32", "llama.rope.scaling.factor", -4.0, "factor of rope scaling is -4.0"),
    ("string", "llama.rope.scaling.factor", "4", "llama.rope.scaling.factor is '4'; expected a number"),
    ("float32", "llama.rope.scaling.yarn_ext_factor", 0.5, "llama.rope.scaling.yarn_ext_factor is 0.5"),
    ("float32", "llama.rope.scaling.yarn_log_multiplier", 0.1, "llama.rope.scaling.yarn_log_multiplier is 0.1"),
    ("float32", "llama.attention.clamp_kqv", 4.0, "llama.attention.clamp_kqv is 4.0; only 0.0"),
    ("float32", "llama.final_logit_softcapping", 30.0, "llama.final_logit_softcapping is 30.0; only 0.0"),
    ("uint32", "llama.colour", 0, "llama.colour is unknown"),
    ("string", "general.type", "adapter", "general.type is 'adapter'"),
    ("uint16", "split.count", 3, "split.count is 3"),
    ("uint32", "llama.attention.value_length", 4, "llama.attention.value_length is 4 and a head has 8"),
    ("uint32", "llama.rope.dimension_count", 4, "llama.rope.dimension_count is 4 and a head has 8"),
    ("uint32", "llama.vocab_size", 41, "llama.vocab_size is 41, but token_embd.weight has 40 rows"),
    ("uint32", "llama.block_count", 1 << 23, "llama.block_count is 8388608, but the file has"),
    ("uint32", "llama.attention.head_count", 0, "llama.attention.head_count is 0"),
    ("array", "llama.attention.head_count_kv", [2, 1], "llama.attention.head_count_kv is an array of 2; expected"),
    ("array", "llama.feed_forward_length", [40, 48], "llama.feed_forward_length is an array of 2; expected"),
    ("float32", "llama.rope.scaling.attn_factor", -1.2, "attention_factor of rope scaling is -1.2"),
    ("float64", "llama.rope.freq_base", 1e300, "llama.rope.freq_base is inf"),
    ("string", "llama.rope.freq_base", "1e4", "llama.rope.freq_base is '1e4'; expected a number"),
    ("array", "tokenizer.ggml.tokens", [str(i) for i in range(41)], "has 41 tokens for the 40 rows"),
]


@pytest.mark.parametrize(
    ("form", "key", "value", "message"), REFUSED, ids=[f"{k}={str(v)[:9]}" for _, k, v, _ in REFUSED]
)
def test_what_is_not_implemented_is_named(tmp_path: Path, form: str, key: str, value: Any, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama(), skip=frozenset({key}),
                      meta=lambda writer: getattr(writer, f"add_{form}")(key, value))  # fmt: skip
    with pytest.raises(OuroEdgeError, match=re.escape(message)):
        open_gguf(path)


def test_ouro_that_skips_its_norm(tmp_path: Path, golden_model: ConfigAndWeights) -> None:
    key = "ouro.skip_loop_final_norm"
    path = write_gguf(tmp_path / "m.gguf", *golden_model, skip=frozenset({key}), meta=lambda w: w.add_bool(key, True))
    with pytest.raises(ConfigError, match=r"ouro\.skip_loop_final_norm is True; only False"):
        open_gguf(path)


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="is 'falcon'; expected one of 'ouro', 'nanbeige', 'hrm_text', 'llama'"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.9.attn_q.weight"])
def test_extra_tensor_is_named(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama(),
                      meta=lambda writer: writer.add_tensor(name, np.ones(4, np.float32)))  # fmt: skip
    with pytest.raises(OuroEdgeError, match=re.escape(name.replace("blk.9.attn_q.weight", "layers.9.q_proj"))):
        open_gguf(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama(), skip=frozenset({"layers.1.up_proj"}))
    with pytest.raises(CheckpointError, match=r"lacks layers\.1\.up_proj"):
        open_gguf(path)
