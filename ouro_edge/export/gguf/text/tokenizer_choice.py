"""Which tokenizer a GGUF file gets: one that was given, its own, or a tokenizer.json beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.errors import CheckpointError, one_line
from ouro_edge.export.checkpoint import is_present
from ouro_edge.export.gguf.header import Metadata
from ouro_edge.export.gguf.text.tokenizer import UNUSED, tokenizer_json

_NAME = "tokenizer.json"
_MAX_BYTES = 64 << 20


def choose_tokenizer(
    metadata: Metadata, path: Path, vocab_size: int, given: Path | None
) -> tuple[str | None, str | None]:
    """The text of a tokenizer.json or None, and a note or None. CheckpointError when `given` does not fit the file.

    A tokenizer.json beside the file is used only where the file's own cannot be, and only if it has the same tokens.
    """
    if given is not None:
        file = given / _NAME if given.is_dir() else given
        if not is_present(file, _MAX_BYTES):
            raise CheckpointError(f"{file} does not exist; expected a tokenizer.json or a directory with one")
        chosen = _read(file)
        if problem := _difference(chosen, metadata, vocab_size):
            raise CheckpointError(f"{file} does not belong to {path}: {problem}")
        return chosen, None
    text, why = tokenizer_json(metadata)
    beside = path.parent / _NAME
    if why is None:
        return text, None
    try:
        if not is_present(beside, _MAX_BYTES):
            return None, f"{why}; put its tokenizer.json beside the file, or give it with --tokenizer"
        text = _read(beside)
        problem = _difference(text, metadata, vocab_size)
    except CheckpointError as unreadable:
        problem = str(unreadable)
    if problem:
        return None, f"{why}; {beside} is not used: {problem}"
    return text, f"the tokenizer is {beside}, because the file's own is not rebuilt"


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise CheckpointError(f"{file} cannot be read: {one_line(problem, 160)}") from None


def _difference(text: str, metadata: Metadata, vocab_size: int) -> str | None:
    """How a tokenizer differs from the tokens that a file lists, or exceeds its vocabulary; None when it fits."""
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_str(text)
    except Exception as problem:
        return f"it is not a readable tokenizer ({one_line(problem, 160)})"
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(vocabulary.values(), default=-1)
    if highest >= vocab_size:
        return f"it has ids up to {highest}, the model's vocabulary ends at {vocab_size - 1}"
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        return None
    listed = np.flatnonzero(types != UNUSED).tolist() if isinstance(types, np.ndarray) else range(len(tokens))
    texts = {i: text for text, i in vocabulary.items()}
    for i in listed:
        if i < len(tokens) and texts.get(i, tokens[i]) != tokens[i]:
            return f"id {i} is {texts[i][:40]!r} there and {tokens[i][:40]!r} in the file"
    missing = sum(i not in texts for i in listed)
    return f"it lacks {missing} of the file's {len(tokens)} tokens" if 2 * missing > len(tokens) else None
