"""Reading GGUF: the golden written as an `ouro` file, grouped heads, every number format, and files that lie."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ouro_edge.arch import reference
from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array, tensor_shapes
from ouro_edge.errors import CheckpointError, ConfigError, OuroEdgeError
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.reader import can_dequantize, open_gguf, our_name
from ouro_edge.export.open_checkpoint import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "ouro-tiny"
Q = GGMLQuantizationType
Tensors = dict[str, tuple[Array, GGMLQuantizationType]]

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
        writer.add_tensor(gguf_name(name), quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def golden() -> tuple[ModelConfig, dict[str, Array]]:
    checkpoint = open_checkpoint(GOLDEN)
    return checkpoint.config, {name: checkpoint.weights[name] for name in checkpoint.weights}


def small_llama(seed: int = 0) -> tuple[ModelConfig, dict[str, Array]]:
    """A plain transformer with grouped heads, tied embeddings and a head_dim that is not hidden / heads."""
    config = ModelConfig(
        model_type="llama", vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=6,
        num_kv_heads=2, head_dim=8, loops=1, max_positions=64, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, sandwich_norms=False, has_gate=False, exit_threshold=1.0, bos_token_id=1,
        eos_token_ids=(2,), pad_token_id=0,
    )  # fmt: skip
    random = np.random.default_rng(seed)
    return config, {n: random.standard_normal(s, np.float32) for n, s in tensor_shapes(config).items()}


def test_golden_with_a_gate_comes_back_exactly(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    config, weights = golden
    checkpoint = open_gguf(write_gguf(tmp_path / "tiny.gguf", config, weights))
    assert checkpoint.config == config
    assert checkpoint.notes == ("no tokenizer in this file: a tokenizer is not rebuilt, so this model works on "
                                "token ids only",)  # fmt: skip
    assert set(checkpoint.weights) == set(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], values, err_msg=name)


def test_reference_through_gguf_matches_upstream(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    expected = np.load(GOLDEN / "expected.npz")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", *golden))
    for row, ids in enumerate(expected["input_ids"]):
        steps = reference.run(checkpoint.config, checkpoint.weights, ids)
        np.testing.assert_allclose(steps.gate_logits, expected["gate_logits"][row], atol=1e-4)
        for r in range(4):
            logits = reference.head(checkpoint.weights, steps.hidden[r])
            np.testing.assert_allclose(logits, expected[f"logits_step{r + 1}"][row], atol=1e-4)


def test_community_file_has_no_gate(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    config, weights = golden
    checkpoint = open_gguf(write_gguf(tmp_path / "tiny.gguf", config, weights, gate=False))
    assert (checkpoint.config.has_gate, checkpoint.config.loops) == (False, 4)
    assert "exit_gate.weight" not in checkpoint.weights
    assert any("no exit gate in this file" in note and "--gate-from" in note for note in checkpoint.notes)


def test_half_a_gate_is_refused(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    path = write_gguf(tmp_path / "t.gguf", *golden, skip=frozenset({"ouro_edge.exit_gate.bias"}))
    with pytest.raises(CheckpointError, match=r"lacks exit_gate\.bias"):
        open_gguf(path)


def test_scalar_bias_and_threshold(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    config, weights = golden

    def meta(writer: GGUFWriter) -> None:
        writer.add_float32("ouro_edge.exit_gate.bias", 0.25)
        writer.add_float32("ouro_edge.exit_threshold", 0.7)
        writer.add_float32("ouro_edge.kv_scale", 0.7)

    skip = frozenset({"ouro_edge.exit_gate.bias", "ouro_edge.exit_threshold"})
    checkpoint = open_gguf(write_gguf(tmp_path / "t.gguf", config, weights, meta=meta, skip=skip))
    np.testing.assert_array_equal(checkpoint.weights["exit_gate.bias"], [0.25])
    assert checkpoint.config.exit_threshold == 0.7
    assert "metadata of another version of ouro-edge is ignored: ouro_edge.kv_scale" in checkpoint.notes


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.MXFP4], ids=lambda k: k.name)
def test_stored_types(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    config, weights = small_llama()
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", config, weights, kind))
    assert checkpoint.config == config
    quantised = sum(v.ndim == 2 and v.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 for v in weights.values())
    assert checkpoint.tensor_types == {"F32": len(weights) - quantised, kind.name: quantised}
    for name, values in weights.items():
        stored = kind if values.ndim == 2 and values.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 else Q.F32
        expected = quants.dequantize(quants.quantize(values, stored), stored)
        np.testing.assert_array_equal(checkpoint.weights[name], expected, err_msg=name)


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


SUPPORTED = [k for k in Q if can_dequantize(k)]


def test_types_that_are_read() -> None:
    names = {k.name for k in SUPPORTED}
    wanted = (
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ2_XXS IQ1_M TQ1_0 TQ2_0 MXFP4"
    )
    assert names >= set(wanted.split())
    assert not {"I8", "I32", "F64", "Q8_1", "Q8_K"} & names


@pytest.mark.parametrize("kind", SUPPORTED, ids=lambda k: k.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_of_any_type(tmp_path: Path, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row ranges of random bytes, read in small chunks and un-permuted, equal the whole tensor dequantised."""
    from ouro_edge.export.gguf import reader as gguf_file

    monkeypatch.setattr(gguf_file, "_CHUNK", 1000)
    block, size = GGML_QUANT_SIZES[kind]
    cols, heads, head_dim = max(block, 64), 4, 6
    data = np.random.default_rng(1).integers(0, 256, (heads * head_dim, cols // block * size), np.uint8)
    file = tmp_path / "rows.gguf"
    file.write_bytes(raw_gguf([("pad", (3,), 0, bytes(12)), ("q", (heads * head_dim, cols), kind, data.tobytes())]))
    tensor = read_header(file).tensors["q"]
    whole = quants.dequantize(data, kind).reshape(heads * head_dim, cols)
    plain = gguf_file.GgufReader(file, tensor)
    rotated = gguf_file.GgufReader(file, tensor, head_dim)
    unpermuted = whole.reshape(heads, head_dim // 2, 2, cols).swapaxes(1, 2).reshape(whole.shape)
    np.testing.assert_array_equal(permute(unpermuted, heads), whole)
    for start, stop in [(0, 24), (0, 1), (5, 7), (11, 24), (23, 24), (4, 4)]:
        np.testing.assert_array_equal(plain.read(start, stop), whole[start:stop])
        np.testing.assert_array_equal(rotated.read(start, stop), unpermuted[start:stop])
    assert plain.read(0, 24).dtype == np.float32


def test_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(raw_gguf([("w", (2, 256), Q.Q8_K, bytes(2 * GGML_QUANT_SIZES[Q.Q8_K][1]))]))
    from ouro_edge.export.gguf.reader import GgufReader

    with pytest.raises(CheckpointError, match="w is stored as Q8_K"):
        GgufReader(file, read_header(file).tensors["w"])


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    config, weights = small_llama()
    weights["layers.0.q_proj"][3, 3] = np.nan
    checkpoint = open_gguf(write_gguf(tmp_path / "nan.gguf", config, weights))
    with pytest.raises(CheckpointError, match=r"layers\.0\.q_proj holds values that are not finite"):
        checkpoint.weights["layers.0.q_proj"]


def test_file_that_vanishes_or_shrinks_after_opening(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama())
    checkpoint = open_gguf(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="can no longer be read"):
        checkpoint.weights["norm"]
    path.unlink()
    with pytest.raises(CheckpointError, match="can no longer be read"):
        checkpoint.weights["norm"]


def test_text_files_and_name(tmp_path: Path) -> None:
    def meta(writer: GGUFWriter) -> None:
        writer.add_name("../My Model: 1.4B/x")
        writer.add_chat_template("{{ 'é' }}")

    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", *small_llama(), meta=meta))
    assert checkpoint.name == "My-Model-1.4B-x"
    assert set(checkpoint.files) == {"config.json", "generation_config.json", "chat_template.jinja"}
    assert checkpoint.files["chat_template.jinja"] == "{{ 'é' }}".encode()
    assert json.loads(checkpoint.files["generation_config.json"]) == {
        "eos_token_id": [2], "bos_token_id": 1, "pad_token_id": 0
    }  # fmt: skip
    assert json.loads(checkpoint.files["config.json"])["head_dim"] == 8
    assert open_gguf(write_gguf(tmp_path / "my file.gguf", *small_llama())).name == "my-file"


def test_more_than_one_stop_token_and_ids_outside(tmp_path: Path) -> None:
    def meta(writer: GGUFWriter) -> None:
        writer.add_uint32("tokenizer.ggml.eot_token_id", 7)
        writer.add_uint32("tokenizer.ggml.padding_token_id", 0xFFFFFFFF)

    skip = frozenset({"tokenizer.ggml.padding_token_id"})
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", *small_llama(), meta=meta, skip=skip))
    assert (checkpoint.config.eos_token_ids, checkpoint.config.pad_token_id) == ((2, 7), None)
    assert any("4294967295 is outside the vocabulary of 40" in note for note in checkpoint.notes)


def test_absent_keys_with_a_meaning(tmp_path: Path) -> None:
    config, weights = small_llama()
    square = ModelConfig.from_dict(config.to_dict() | {"num_heads": 4, "num_kv_heads": 4})
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal(s, np.float32) for n, s in tensor_shapes(square).items()}
    absent = {"attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
              "vocab_size"}  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", square, weights, skip=frozenset(f"llama.{k}" for k in absent))
    assert open_gguf(path).config == square


@pytest.mark.parametrize(
    "key", ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon", "rope.freq_base", "num_loops"],
)  # fmt: skip
def test_missing_key_is_named(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]], key: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", *golden, skip=frozenset({f"ouro.{key}"}))
    with pytest.raises(ConfigError, match=re.escape(f"ouro.{key} is missing")):
        open_gguf(path)


REFUSED: list[tuple[str, str, Any, str]] = [
    ("bool", "llama.skip_loop_final_norm", True, "llama.skip_loop_final_norm is unknown"),
    ("uint32", "llama.expert_count", 8, "llama.expert_count is 8"),
    ("string", "llama.rope.scaling.type", "yarn", "llama.rope.scaling.type is 'yarn'"),
    ("float32", "llama.rope.scaling.factor", 4.0, "llama.rope.scaling.factor is 4.0"),
    ("float32", "llama.attention.clamp_kqv", 4.0, "llama.attention.clamp_kqv is unknown"),
    ("string", "general.type", "adapter", "general.type is 'adapter'"),
    ("uint16", "split.count", 3, "split.count is 3"),
    ("uint32", "llama.attention.value_length", 4, "llama.attention.value_length is 4 and a head has 8"),
    ("uint32", "llama.rope.dimension_count", 4, "llama.rope.dimension_count is 4 and a head has 8"),
    ("uint32", "llama.vocab_size", 41, "llama.vocab_size is 41, but token_embd.weight has 40 rows"),
    ("uint32", "llama.block_count", 1 << 23, "llama.block_count is 8388608, but the file has"),
    ("uint32", "llama.attention.head_count", 0, "llama.attention.head_count is 0"),
    ("array", "llama.attention.head_count_kv", [2, 2], "llama.attention.head_count_kv is an array of 2; wanted"),
    ("float64", "llama.rope.freq_base", 1e300, "llama.rope.freq_base is inf"),
    ("string", "llama.rope.freq_base", "1e4", "llama.rope.freq_base is '1e4'; wanted a number"),
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


def test_ouro_that_skips_its_norm(tmp_path: Path, golden: tuple[ModelConfig, dict[str, Array]]) -> None:
    key = "ouro.skip_loop_final_norm"
    path = write_gguf(tmp_path / "m.gguf", *golden, skip=frozenset({key}), meta=lambda w: w.add_bool(key, True))
    with pytest.raises(ConfigError, match=r"ouro\.skip_loop_final_norm is True; only False"):
        open_gguf(path)


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="architecture is 'falcon'; wanted 'ouro' or 'llama'"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.9.attn_q.weight"])
def test_extra_tensor_is_named(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama(),
                      meta=lambda writer: writer.add_tensor(name, np.ones(4, np.float32)))  # fmt: skip
    with pytest.raises(OuroEdgeError, match=re.escape(name.replace("blk.9.attn_q.weight", "layers.9.q_proj"))):
        open_gguf(path)


def test_scaled_rotary_positions_are_named(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", *small_llama(), meta=lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    )
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight scales rotary positions"):
        open_gguf(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama(), skip=frozenset({"layers.1.up_proj"}))
    with pytest.raises(CheckpointError, match=r"lacks layers\.1\.up_proj"):
        open_gguf(path)


def test_names() -> None:
    assert our_name("blk.3.post_attention_norm.weight", True) == "layers.3.attn_post_norm"
    assert our_name("blk.3.post_ffw_norm.weight", True) == "layers.3.ffn_post_norm"
    assert our_name("blk.3.ffn_norm.weight", True) == "layers.3.ffn_norm"
    assert our_name("blk.3.post_ffw_norm.weight", False) == "blk.3.post_ffw_norm.weight"
    assert our_name("blk.03.attn_q.weight", False) == "blk.03.attn_q.weight"
    assert our_name("output.weight", False) == "head"


F32 = struct.pack("<f", 1.0)
PAIR = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)  # a header that promises one metadata pair
HUGE = struct.pack("<Q", 1 << 62)
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "inside the magic"),
    "magic": (b"GGML" + bytes(60), "wanted a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "is GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "only a version": (b"GGUF" + struct.pack("<I", 3), "inside the number of tensors"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "claims 4611686018427387904 tensors"),
    "pair count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "claims 4611686018427387904 metadata pairs"),
    "key length": (PAIR + HUGE + bytes(40), "inside metadata key 0"),
    "string length": (PAIR + string("k") + struct.pack("<I", 8) + HUGE, "inside k"),
    "string count": (
        PAIR + string("k") + struct.pack("<II", 9, 8) + HUGE, "strings in k",
    ),
    "number count": (PAIR + string("k") + struct.pack("<II", 9, 4) + HUGE, "inside k"),
    "nested array": (
        PAIR + string("k") + struct.pack("<II", 9, 9) + bytes(32), "value type 9",
    ),
    "value type": (PAIR + string("k") + struct.pack("<I", 99) + bytes(9), "type 99"),
    "bool": (PAIR + string("k") + struct.pack("<IB", 7, 2), "neither true nor false"),
    "not UTF-8": (
        PAIR + string("k") + struct.pack("<IQ", 8, 1) + b"\xff", "not UTF-8 in k",
    ),
    "key with a line break": (PAIR + string("a\nb") + bytes(40), r"'a\nb'"),
    "key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (string("k") + struct.pack("<II", 4, 1)), "metadata key k twice",
    ),
    "alignment 0": (
        PAIR + string("general.alignment") + struct.pack("<II", 4, 0),
        "general.alignment 0",
    ),
    "alignment 24": (
        PAIR + string("general.alignment") + struct.pack("<II", 4, 24),
        "general.alignment 24",
    ),
    "tensor twice": (raw_gguf([("w", (1,), 0, F32), ("w", (1,), 0, F32)]), "tensor w twice"),
    "no dimensions": (raw_gguf([("w", (), 0, F32)]), "w 0 dimensions"),
    "five dimensions": (raw_gguf([("w", (1,) * 5, 0, F32)]), "w 5 dimensions"),
    "no rows": (raw_gguf([("w", (0, 4), 0, F32)]), "w the shape [0, 4]"),
    "too many rows": (raw_gguf([("w", (1 << 63, 1 << 62), 0, F32)]), "cut short"),
    "part of a block": (raw_gguf([("w", (33,), 2, bytes(36))]), "blocks of 32"),
    "unknown type": (raw_gguf([("w", (1,), 4, F32)]), "w in the unknown type 4"),
    "unknown big type": (raw_gguf([("w", (1,), 1 << 31, F32)]), "w in the unknown type 2147483648"),
    "beyond the end": (raw_gguf([("w", (99,), 0, F32)]), "w ends at"),
    "far beyond the end": (
        raw_gguf([("w", (1,), 0, F32)])[:49] + HUGE + bytes(64), f"w ends at {64 + (1 << 62) + 4}",
    ),
    "crooked offset": (
        raw_gguf([("v", (1,), 0, F32), ("w", (1,), 0, F32)], 16), "wanted a multiple of the alignment 32",
    ),
    "overlap": (raw_gguf([("v", (16,), 0, F32), ("w", (1,), 0, F32)]), "w into the bytes of v"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lying_files(tmp_path: Path, lie: str) -> None:
    content, message = LIES[lie]
    file = tmp_path / "lie.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_gguf(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_sparse_file_is_refused_at_once(tmp_path: Path) -> None:
    """A header that claims the whole of a 100 GB file as empty strings must neither allocate nor take long."""
    file = tmp_path / "sparse.gguf"
    with file.open("wb") as f:
        f.write(PAIR + string("k") + struct.pack("<IIQ", 9, 8, 12 << 30))
        f.truncate(100 << 30)
    with pytest.raises(CheckpointError, match="claims 12884901888 strings in k"):
        open_gguf(file)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file with all kinds of metadata, a tokenizer among them."""

    def meta(writer: GGUFWriter) -> None:
        writer.add_name("sample")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3, 1, 1, 1])
        writer.add_token_merges(["a b"])
        writer.add_chat_template("{{ messages }}")

    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    config, weights = small_llama()
    content = write_gguf(path, config, weights, Q.Q4_1, meta=meta).read_bytes()
    checkpoint = open_gguf(path)
    assert "tokenizer.json" in checkpoint.files and not checkpoint.notes
    assert json.loads(checkpoint.files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"
    return content


def swallow(path: Path) -> None:
    """Open and read all: either it works or it is one of our errors on one line."""
    try:
        checkpoint = open_gguf(path)
        for name in checkpoint.weights:
            checkpoint.weights[name]
    except OuroEdgeError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


FUZZ = settings(max_examples=int(os.environ.get("OURO_EDGE_FUZZ", "300")), deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@FUZZ
@given(data=st.data())
def test_bent_files_raise_only_our_errors(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    content = bytearray(sample)
    header = sample.index(b"output_norm.weight") + 200
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(header, len(content) - 1)))
        new = data.draw(st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 31), struct.pack("<I", 9)]),
        ))  # fmt: skip
        if data.draw(st.booleans()):
            content[at : at + len(new)] = new
        else:
            content[at : at + data.draw(st.integers(0, 16))] = new
    file = tmp_path / "bent.gguf"
    file.write_bytes(content)
    swallow(file)


@FUZZ
@given(data=st.data())
def test_cut_files_are_refused(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    file = tmp_path / "cut.gguf"
    # the file ends with padding after the last tensor, which may be missing
    file.write_bytes(sample[: data.draw(st.integers(0, len(sample) - 33))])
    with pytest.raises(CheckpointError):
        open_gguf(file)
