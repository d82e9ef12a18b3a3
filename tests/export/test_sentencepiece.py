"""Checkpoints whose tokenizer is SentencePiece's tokenizer.model only."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import write_checkpoint

import ouro_edge
from ouro_edge.errors import CheckpointError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.export.sentencepiece import convert
from ouro_edge.runtime.text.tokenizer import Tokenizer

PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
          ("▁t", -0.0, 1), ("he", -1.0, 1), ("▁the", -2.0, 1), ("▁c", -3.0, 1), ("at", -4.0, 1),
          *((letter, -10.0 - i, 1) for i, letter in enumerate("▁theca"))]  # fmt: skip


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes | str) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(kind: int = 2, extra: bool = False, charsmap: bytes = b"", pieces: Any = PIECES) -> bytes:
    """The bytes of a tokenizer.model, as Llama's."""
    written = b"".join(field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in pieces)
    normalizer = field(1, "identity") + field(2, charsmap) + field(3, 1) + field(4, int(extra))
    return written + field(2, field(3, kind) + field(35, 1)) + field(3, normalizer)


def converted(settings: dict[str, Any] | None = None) -> Tokenizer:
    text, why = convert(model(), settings or {})
    assert text is not None, why
    return Tokenizer.from_json(text)


def test_pieces_bytes_and_bos() -> None:
    tokenizer = converted()
    ids = tokenizer.encode("the cat é")
    pieces = ["▁the", "▁c", "at", "▁", "<0xC3>", "<0xA9>"]
    assert [tokenizer.piece(i) for i in ids] == pieces
    assert tokenizer.decode(ids) == "the cat é"
    assert tokenizer.encode_text("the") == [1, *tokenizer.encode("the")]


def test_settings_of_tokenizer_config() -> None:
    added = {str(len(PIECES)): {"content": "<|im_start|>", "special": True}, "1": {"content": "<s>", "special": True},
             str(len(PIECES) + 1): {"content": "<tool>", "special": False}}  # fmt: skip
    tokenizer = converted({"add_bos_token": False, "added_tokens_decoder": added})
    start, tool = len(PIECES), len(PIECES) + 1
    assert tokenizer.encode_text("<|im_start|>") == [start] and tokenizer.is_special(start)
    assert tokenizer.token_id("<tool>") == tool and not tokenizer.is_special(tool)


@pytest.mark.parametrize(
    ("content", "settings", "why"),
    [
        (model(kind=1), {}, "unigram"),
        (model(extra=True), {}, "remove_extra_whitespaces"),
        (model(charsmap=b"abc"), {}, "precompiled_charsmap"),
        (model(), {"added_tokens_decoder": {"1": {"content": "<bos>"}}}, "disagree about id 1"),
        (model(), {"added_tokens_decoder": {"900": {"content": "<x>"}}}, "disagree about id 900"),
    ],
)
def test_what_is_not_converted_has_a_reason(content: bytes, settings: dict[str, Any], why: str) -> None:
    text, reason = convert(content, settings)
    assert text is None and reason is not None and why in reason


@given(st.one_of(st.binary(max_size=60), st.integers(1, len(model()) - 1).map(lambda at: model()[:at])))
def test_damaged_files(content: bytes) -> None:
    try:
        text, why = convert(content, {})
    except CheckpointError:
        return
    assert (text is None) != (why is None)


def test_a_checkpoint_with_tokenizer_model_only(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "talker", vocab_size=300)
    (path / "tokenizer.model").write_bytes(model())
    checkpoint = open_checkpoint(path)
    assert "tokenizer.json was made from tokenizer.model" in checkpoint.notes
    result = ouro_edge.export(path, tmp_path / "out", precision="fp32")
    with ouro_edge.load(result.path, threads=1) as loaded:
        assert loaded.tokenizer.decode(loaded.tokenizer.encode("the cat")) == "the cat"


def test_one_that_is_not_converted_is_noted(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "talker", vocab_size=300)
    (path / "tokenizer.model").write_bytes(model(kind=1))
    checkpoint = open_checkpoint(path)
    assert "tokenizer.json" not in checkpoint.files
    assert any("unigram" in note and "token ids only" in note for note in checkpoint.notes)
    (path / "tokenizer.json").write_text(json.dumps({}))
    assert not open_checkpoint(path).notes  # tokenizer.json takes precedence


def test_equals_the_published_library() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = ["The capital of France is Paris.", "naïve café, 日本語", "the cat sat on the mat 0123"] * 40
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=stream, vocab_size=330, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    text, why = convert(stream.getvalue(), {})
    assert text is not None, why
    tokenizer = Tokenizer.from_json(text)
    for sample in ("the cat", "France  is\nnaïve", " 日本語 😀", "capital0123 Paris.The"):
        assert tokenizer.encode(sample) == processor.encode(sample), sample
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
