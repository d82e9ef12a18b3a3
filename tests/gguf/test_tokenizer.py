"""Tokenizers rebuilt from GGUF metadata: small ones by hand, SmolLM2's against the published ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer

from ouro_edge.errors import CheckpointError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.text.tokenizer import tokenizer_json
from ouro_edge.export.open_checkpoint import open_checkpoint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2.json").read_text(encoding="utf-8"))
BYTES = ["\u0120" if b == " " else "\u010a" if b == "\n" else b for b in map(chr, range(33, 127))] + [
    "\u0120",
    "\u010a",
]


def byte_level(pre: Any = "smollm", merges: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer: three special tokens, ASCII, what the merges make, a user-defined token."""
    tokens = ["<bos>", "<eos>", "<pad>", *BYTES, *(m.replace(" ", "") for m in merges), "<tool>"]
    kinds = np.ones(len(tokens), np.int32)
    kinds[:3], kinds[-1] = 3, 4
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def rebuild(metadata: dict[str, Any]) -> Tokenizer:
    text, why = tokenizer_json(metadata)
    assert text is not None, why
    assert why is None
    return Tokenizer.from_str(text)


def pieces(metadata: dict[str, Any], text: str, special: bool = False) -> list[str]:
    encoded: list[str] = rebuild(metadata).encode(text, add_special_tokens=special).tokens
    return encoded


def test_merges_in_order_and_special_tokens() -> None:
    metadata = byte_level(merges=("a b", "b c", "ab c", "Ġ a"))
    assert pieces(metadata, "abc bc<eos>ab") == ["abc", "Ġ", "bc", "<eos>", "ab"]
    tokenizer = rebuild(metadata)
    assert [tokenizer.token_to_id(t) for t in ("<bos>", "<eos>", "<pad>")] == [0, 1, 2]
    assert tokenizer.decode([0, 3, 1]) == "!"
    assert tokenizer.decode([0, 3, 1], skip_special_tokens=False) == "<bos>!<eos>"


def test_user_defined_token_is_added_but_not_special() -> None:
    metadata = byte_level()
    assert pieces(metadata, "a<tool>b") == ["a", "<tool>", "b"]
    assert rebuild(metadata).decode([len(metadata["tokenizer.ggml.tokens"]) - 1]) == "<tool>"


@pytest.mark.parametrize(
    ("pre", "digits", "newlines"),
    [
        ("smollm", ["1", "2", "3", "4"], ["a", "Ċ", "Ċ", "!"]),
        ("gpt-2", ["1234"], ["a", "Ċ", "Ċ", "!"]),
        ("llama-bpe", ["123", "4"], ["a", "ĊĊ", "!"]),
        ("qwen2", ["1", "2", "3", "4"], ["a", "ĊĊ", "!"]),
    ],
)
def test_how_text_is_cut(pre: str, digits: list[str], newlines: list[str]) -> None:
    metadata = byte_level(pre, ("1 2", "12 3", "123 4", "Ċ Ċ", "a !"))
    assert pieces(metadata, "1234") == digits
    assert pieces(metadata, "a\n\n!") == newlines
    assert rebuild(metadata).decode(rebuild(metadata).encode(" 12 ab\n").ids) == " 12 ab\n"


def test_llama3_ignores_merges_for_whole_tokens_and_starts_with_bos() -> None:
    metadata = byte_level("llama-bpe", ("b c",))
    metadata["tokenizer.ggml.tokens"][-2] = "abc"  # in the vocabulary, reachable by no merge
    metadata["tokenizer.ggml.merges"] = []
    assert pieces(metadata, "abc", special=True) == ["<bos>", "abc"]
    assert pieces(metadata | {"tokenizer.ggml.pre": "qwen2"}, "abc", special=True) == ["a", "b", "c"]


def test_qwen2_composes_characters() -> None:
    assert rebuild(byte_level("qwen2")).normalizer.normalize_str("e\u0301") == "\u00e9"


@pytest.mark.parametrize(("bos", "eos", "expected"), [
    (True, True, ["<bos>", "a", "<eos>"]), (True, False, ["<bos>", "a"]), (False, True, ["a", "<eos>"]),
    (False, False, ["a"]),
])  # fmt: skip
def test_bos_and_eos(bos: bool, eos: bool, expected: list[str]) -> None:
    assert pieces(byte_level(add_bos_token=bos, add_eos_token=eos), "a", special=True) == expected


def sentencepiece(**more: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary: unknown, BOS, EOS, 256 bytes, pieces with falling scores."""
    words = ["▁a", "bc", "ab", "abc", "▁abc", "▁▁", "▁", "a", "b", "c", "yz", "xy", "x", "y", "z"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    kinds = np.array([2, 3, 3] + [6] * 256 + [1] * len(words), np.int32)
    scores = np.zeros(len(tokens), np.float32)
    scores[259:] = -np.arange(len(words))
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def test_sentencepiece_merges_by_score() -> None:
    metadata = sentencepiece()
    assert pieces(metadata, "abc", special=True) == ["<s>", "▁abc"]  # "▁a" and "bc" first, then both together
    assert pieces(metadata, "axyz") == ["▁a", "x", "yz"]  # not xy and z
    assert pieces(metadata, "aab  c") == ["▁a", "ab", "▁▁", "c"]
    assert pieces(metadata, "é\n") == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    tokenizer = rebuild(metadata)
    assert tokenizer.decode(tokenizer.encode(" aé  b").ids) == " aé  b"
    assert pieces(sentencepiece(add_space_prefix=False, add_bos_token=False), "a a", special=True) == ["a", "▁a"]


NOT_REBUILT: list[tuple[dict[str, Any], str]] = [
    ({}, "no tokenizer in this file"),
    ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert'"),
    ({"tokenizer.ggml.model": np.ones(3)}, "tokenizer model an array of 3"),
    (byte_level("default"), "tokenizer.ggml.pre 'default'"),
    (byte_level("tekken"), "tokenizer.ggml.pre 'tekken'"),
    ({k: v for k, v in byte_level().items() if k != "tokenizer.ggml.pre"}, "tokenizer.ggml.pre is missing"),
    ({k: v for k, v in byte_level().items() if k != "tokenizer.ggml.token_type"}, "token_type is missing"),
    (byte_level(tokens=[]), "tokens is missing"),
    (byte_level(tokens=["a", "a"], token_type=np.ones(2, np.int32)), "empty or repeated tokens"),
    (byte_level(tokens=["a"], token_type=np.array([9])), "unknown kinds"),
    (sentencepiece(scores=np.zeros(274, np.float32)), "tied scores"),
    (sentencepiece(precompiled_charsmap=np.ones(4, np.uint8)), "precompiled_charsmap"),
    (sentencepiece(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
    (sentencepiece(token_type=np.array([2, 3, 3] + [1] * 271)), "without byte fallback"),
    (sentencepiece(token_type=np.array([2, 3, 3] + [6] * 256 + [4] + [1] * 14)), "spaces in user-defined tokens"),
    (sentencepiece(tokens=[*sentencepiece()["tokenizer.ggml.tokens"][:-1], "x" * 600]), "oversized tokens"),
]


@pytest.mark.parametrize(("metadata", "reason"), NOT_REBUILT, ids=[r for _, r in NOT_REBUILT])
def test_a_reason_rather_than_a_wrong_tokenizer(metadata: dict[str, Any], reason: str) -> None:
    text, why = tokenizer_json(metadata)
    assert text is None
    assert why is not None and reason in why and why.endswith("works on token ids only")


@pytest.mark.parametrize(("metadata", "message"), [
    (byte_level(token_type=np.ones(3, np.int32)), "tokens and 3 token types"),
    (byte_level(merges=("a b",)) | {"tokenizer.ggml.merges": None}, "merges is missing"),
    (byte_level(merges=("a b",)) | {"tokenizer.ggml.merges": ["a b c"]}, "has 'a b c'; expected two tokens"),
    (byte_level(merges=("a b",)) | {"tokenizer.ggml.merges": ["a é"]}, "'a é', whose parts or whole are not tokens"),
    (byte_level(tokens=list("!#ab"), token_type=np.ones(4, np.int32), merges=["! #"]), "'! #', whose parts or whole"),
    (sentencepiece(scores=np.zeros(3, np.float32)), "scores is missing or not one"),
    (sentencepiece(scores=np.full(274, np.nan, np.float32)), "scores is missing or not one finite"),
])  # fmt: skip
def test_damaged_metadata(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer_json(metadata)


@pytest.fixture(scope="module")
def opened(smollm2: Path) -> Checkpoint:
    return open_checkpoint(smollm2)


@pytest.mark.smollm2
def test_smollm2_file(opened: Checkpoint) -> None:
    assert opened.tensor_types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert opened.name == "Smollm2-135M-8k-Lc100K-Mix1-Ep2"
    assert opened.notes == ()
    config = opened.config
    assert (config.num_heads, config.num_kv_heads, config.tie_word_embeddings) == (9, 3, True)
    assert (config.rms_norm_eps, config.stop_token_ids) == (1e-5, (2,))


@pytest.mark.smollm2
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[c["prompt"][:12].strip() for c in GOLDEN["cases"]])
def test_smollm2_ids_and_template(opened: Checkpoint, case: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(opened.files["tokenizer.json"].decode())
    assert tokenizer.encode(case["text"]).ids == case["ids"]
    assert tokenizer.decode(case["greedy"], skip_special_tokens=False) == case["greedy_text"]
    if case["kind"] == "chat":
        template = jinja2.Template(opened.files["chat_template.jinja"].decode(), keep_trailing_newline=True)
        messages = [{"role": "user", "content": case["prompt"]}]
        assert template.render(messages=messages, add_generation_prompt=True) == case["text"]


@pytest.mark.smollm2
def test_smollm2_logits(opened: Checkpoint) -> None:
    from ouro_edge.arch import reference

    case = GOLDEN["cases"][0]
    weights = {name: opened.weights[name] for name in opened.weights}
    weights["head"] = weights["embedding"]
    steps = reference.run(opened.config, weights, np.array(case["ids"]))
    logits = reference.head(weights, steps.hidden[-1][-1])
    assert np.argsort(-logits)[:20].tolist() == case["top_ids"]
    np.testing.assert_allclose(logits[case["top_ids"]], case["top_logits"], atol=1e-3)
