"""Converts SentencePiece's tokenizer.model to tokenizer.json, for checkpoints that have only the former.

The file is a protocol buffer, of which a few fields are read here, so that no library is needed (sentencepiece's
sentencepiece_model.proto). BPE models with byte fallback, as Llama's and Mistral's, are converted the way GGUF's
vocabulary of the same kind is; for others the result is a reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.header import Value
from ouro_edge.export.gguf.text.tokenizer import CONTROL, NORMAL, USER, tokenizer_json

_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IDS = 1 << 24


def convert(content: bytes, settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The text of tokenizer.json and None, or None and why it is not made. `settings` is tokenizer_config.json.

    CheckpointError when the file is damaged.
    """
    try:
        pieces, trainer, normalizer, denormalizer = _model(content)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError, TypeError):
        raise CheckpointError("tokenizer.model is not a SentencePiece model; download it again") from None
    kind = _KINDS.get(trainer.get(3, 1), "unknown")
    if kind != "BPE":
        return None, f"tokenizer.model is a SentencePiece model of the kind {kind}; only BPE is converted"
    if trainer.get(24) or denormalizer.get(2):
        return None, "tokenizer.model has spaces after words or rules for decoded text, which are not converted"
    tokens = [text for text, _, _ in pieces]
    types = [kind for _, _, kind in pieces]
    if (problem := _add(tokens, types, settings)) is not None:
        return None, problem
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array([s for _, s, _ in pieces] + [0] * (len(tokens) - len(pieces)), np.float32),
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "tokenizer.ggml.precompiled_charsmap": np.frombuffer(normalizer.get(2, b""), np.uint8),
    }
    for name, field, default in (("bos", 41, 1), ("eos", 42, 2)):
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        i = tokens.index(text) if text in tokens else trainer.get(field, default)
        metadata[f"tokenizer.ggml.{name}_token_id"] = i
        if isinstance(adds := settings.get(f"add_{name}_token"), bool):
            metadata[f"tokenizer.ggml.add_{name}_token"] = adds
    text, why = tokenizer_json(metadata)
    return text, None if why is None else f"tokenizer.model is not converted: {why}"


def _add(tokens: list[str], types: list[int], settings: Mapping[str, Any]) -> str | None:
    """Add the tokens of tokenizer_config.json that the model does not have; returns why that is not possible."""
    entries = settings.get("added_tokens_decoder")
    found = {int(i): e for i, e in entries.items() if i.isdecimal()} if isinstance(entries, dict) else {}
    for i, entry in sorted(found.items()):
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or i > len(tokens) or (i < len(tokens) and tokens[i] != text):
            return f"tokenizer.model and added_tokens_decoder of tokenizer_config.json disagree about id {i}"
        kind = CONTROL if entry.get("special") else USER
        if i == len(tokens):
            tokens.append(text)
            types.append(kind)
        elif kind == CONTROL and types[i] in (NORMAL, USER):
            types[i] = CONTROL
    return None


def _model(content: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any], dict[int, Any]]:
    """(text, score, kind) of each piece; fields of the trainer's, the normalizer's and the denormalizer's settings."""
    pieces: list[tuple[str, float, int]] = []
    parts: dict[int, dict[int, Any]] = {}
    for field, value in _fields(content):
        if field == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append((piece[1].decode() if 1 in piece else "", score, int(piece.get(3, NORMAL))))
        elif field in (2, 3, 5):
            parts[field] = dict(_fields(value))
    if not pieces or len(pieces) > _IDS:
        raise ValueError
    return pieces, parts.get(2, {}), parts.get(3, {}), parts.get(5, {})


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of the fields of a message: an integer, or bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            size, at = _varint(content, at)
        if size is None or at + size > len(content):
            raise ValueError
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError
