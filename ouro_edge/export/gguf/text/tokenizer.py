"""Rebuilds tokenizer.json from the metadata of a GGUF file.

GGUF stores tokens, merges or scores, and one name, `tokenizer.ggml.pre`, for the splitting of text before merging. A
tokenizer is rebuilt only for names whose published tokenizer is known; for other names the result is a reason, because
an almost correct tokenizer would give wrong ids silently. `pre` = "default" (or none) means "not known" in llama.cpp.
Sources: the published tokenizer.json files; llama.cpp's llama-vocab.cpp; transformers' converter (merges from scores).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ouro_edge.errors import CheckpointError, one_line
from ouro_edge.export.gguf.config import brief
from ouro_edge.export.gguf.header import Metadata

Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_MAX_PIECE_CHARACTERS = 512  # in a SentencePiece vocabulary; splitting takes quadratic time
_MAX_SPLITS = 1 << 24


def _byte_level(use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(digits: str) -> Json:
    """GPT-4's pattern; Llama 3 and Qwen 2 differ in the number of digits that are not split."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(True)]}
_LLAMA3 = {"pre_tokenizer": _split(r"\p{N}{1,3}"), "ignore_merges": True, "add_bos": True}
_PRE: dict[str, Json] = {
    "gpt-2": {"pre_tokenizer": _byte_level(use_regex=True)},
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": {"pre_tokenizer": _split(r"\p{N}"), "normalizer": {"type": "NFC"}},
    "smollm": {"pre_tokenizer": _DIGITS},
    "starcoder": {"pre_tokenizer": _DIGITS},
}


def pre_of(tokenizer: Json) -> str | None:
    """GGUF's name for the text splitting of a tokenizer.json; None without a name, or if it is not byte-level BPE."""
    model, decoder = tokenizer.get("model"), tokenizer.get("decoder")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        return None
    found = (tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    for name, known in _PRE.items():
        if found == (known.get("normalizer"), known["pre_tokenizer"], known.get("ignore_merges", False)):
            return name
    return None


class _CannotRebuild(Exception):
    """Carries the reason, which becomes a note."""


def tokenizer_json(metadata: Metadata) -> tuple[str | None, str | None]:
    """(tokenizer.json, None), or (None, reason). CheckpointError when the metadata is damaged.

    If the file contains a complete tokenizer.json next to GGUF's vocabulary (ouro-edge writes one), it is returned.
    """
    from tokenizers import Tokenizer

    if isinstance(whole := metadata.get("tokenizer.huggingface.json"), str):
        return whole, None
    try:
        model = metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model not in ("gpt2", "llama"):
            absent = model is None or (isinstance(model, str) and model == "no_vocab")
            raise _CannotRebuild("no tokenizer in this file" if absent else f"tokenizer model {brief(model)}")
        tokens, types = _vocabulary(metadata)
        parts = _byte_level_bpe(metadata, tokens) if model == "gpt2" else _sentencepiece(metadata, tokens, types)
    except _CannotRebuild as reason:
        return None, f"{reason}: a tokenizer is not rebuilt, so this model works on token ids only"
    add_bos = parts.pop("add_bos", False)
    parts["post_processor"] = _template(metadata, tokens, add_bos)
    parts["added_tokens"] = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": bool(types[i] != USER)}
        for i in np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER))).tolist()
    ]  # fmt: skip
    text = json.dumps({"version": "1.0", "truncation": None, "padding": None} | parts, ensure_ascii=False)
    try:
        rebuilt = Tokenizer.from_str(text)
    except Exception as problem:
        raise CheckpointError(f"tokenizer.ggml metadata is not a usable tokenizer: {one_line(problem, 160)}") from None
    if rebuilt.get_vocab_size() != len(tokens) or any(
        rebuilt.token_to_id(tokens[i]) != i for i in (0, -1 % len(tokens))
    ):
        raise CheckpointError("tokenizer.ggml.tokens did not keep their ids when rebuilt; the metadata is damaged")
    return text, None


def _vocabulary(metadata: Metadata) -> tuple[list[str], np.ndarray[Any, Any]]:
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise _CannotRebuild("tokenizer.ggml.tokens is missing")
    if not isinstance(types, np.ndarray):
        raise _CannotRebuild("tokenizer.ggml.token_type is missing")
    if len(types) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml has {len(tokens)} tokens and {len(types)} token types; damaged")
    if not np.isin(types, (NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE)).all():
        raise _CannotRebuild("tokenizer.ggml.token_type has unknown kinds")
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise _CannotRebuild("tokenizer.ggml.tokens has empty or repeated tokens")
    return tokens, types


def _byte_level_bpe(metadata: Metadata, tokens: list[str]) -> Json:
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE:
        raise _CannotRebuild("tokenizer.ggml.pre is missing" if pre is None else f"tokenizer.ggml.pre {brief(pre)}")
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise CheckpointError("tokenizer.ggml.merges is missing; a byte-level tokenizer needs them")
    merges = [line.split(" ") for line in lines]
    if wrong := [line for line, pair in zip(lines, merges, strict=True) if len(pair) != 2 or "" in pair]:
        raise CheckpointError(f"tokenizer.ggml.merges has {wrong[0][:40]!r}; expected two tokens with a space between")
    vocabulary = set(tokens)
    if wrong := [line for line, pair in zip(lines, merges, strict=True) if not vocabulary >= {*pair, "".join(pair)}]:
        raise CheckpointError(
            f"tokenizer.ggml.merges has {wrong[0][:40]!r}, whose parts or whole are not tokens; damaged"
        )
    known: Json = {"normalizer": None, "ignore_merges": False, "add_bos": False} | _PRE[pre]
    return {
        "normalizer": known["normalizer"],
        "pre_tokenizer": known["pre_tokenizer"],
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(tokens, merges, ignore_merges=known["ignore_merges"]),
        "add_bos": known["add_bos"],
    }


def _sentencepiece(metadata: Metadata, tokens: list[str], types: np.ndarray[Any, Any]) -> Json:
    """SentencePiece BPE with byte fallback, as in Llama 2's published tokenizer.json."""
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if np.size(value := metadata.get(f"tokenizer.ggml.{key}", False)) and value is not False:
            raise _CannotRebuild(f"tokenizer model 'llama' with {key}")
    unknown = np.flatnonzero(types == UNKNOWN).tolist()
    if len(unknown) != 1 or np.count_nonzero(types == BYTE) != 256:
        raise _CannotRebuild("tokenizer model 'llama' without byte fallback")
    if any(_SPACE in tokens[i] for i in np.flatnonzero(types == USER).tolist()):
        raise _CannotRebuild("tokenizer model 'llama' with spaces in user-defined tokens")
    add_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if add_prefix else []
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    back = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": prefix + spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "Fuse"}, *strip]},
        "model": _bpe(tokens, _merges_from_scores(metadata, tokens, types)) | {
            "unk_token": tokens[unknown[0]], "fuse_unk": True, "byte_fallback": True
        },
        "add_bos": True,
    }  # fmt: skip


def _merges_from_scores(metadata: Metadata, tokens: list[str], types: np.ndarray[Any, Any]) -> list[list[str]]:
    """Every split of a piece into two pieces, highest score first: the order of SentencePiece's merges."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise CheckpointError("tokenizer.ggml.scores is missing or not one finite number for each token; damaged")
    pieces = [(tokens[i], float(scores[i])) for i in np.flatnonzero(types == NORMAL).tolist()]
    longer = [(piece, score) for piece, score in pieces if len(piece) > 1]
    sizes = [len(piece) for piece, _ in longer]
    if sum(sizes) > _MAX_SPLITS or max(sizes, default=0) > _MAX_PIECE_CHARACTERS:
        raise _CannotRebuild("tokenizer model 'llama' with oversized tokens")
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = [
        (score, piece[:at], piece[at:])
        for piece, score in longer
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    if len({score for score, _, _ in merges}) != len({left + right for _, left, right in merges}):
        raise _CannotRebuild("tokenizer model 'llama' with tied scores")
    merges.sort(key=lambda merge: (-merge[0], ids[merge[1]], ids[merge[2]]))
    return [[left, right] for _, left, right in merges]


def _bpe(tokens: list[str], merges: list[list[str]], ignore_merges: bool = False) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }


def _template(metadata: Metadata, tokens: list[str], add_bos: bool) -> Json | None:
    """The post-processor that adds BOS and EOS to a text, if the file requires it."""

    def special(name: str, default: bool) -> list[int]:
        i = metadata.get(f"tokenizer.ggml.{name}_token_id")
        added = metadata.get(f"tokenizer.ggml.add_{name}_token", default)
        return [i] if added is True and type(i) is int and 0 <= i < len(tokens) else []

    bos, eos = special("bos", add_bos), special("eos", False)
    if not bos and not eos:
        return None

    def around(sequence: str, type_id: int) -> list[Json]:
        before, after = ([{"SpecialToken": {"id": tokens[i], "type_id": type_id}} for i in ids] for ids in (bos, eos))
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in bos + eos},
    }
