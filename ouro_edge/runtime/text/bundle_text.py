"""What the runtime takes from a bundle's text files: tokenizer, chat template, settings, ends of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import BundleError
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.runtime.text.tokenizer import Tokenizer


def read_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The tokenizer, None when the bundle has none. BundleError when it does not fit the model."""
    text = bundle.text("tokenizer.json")
    return None if text is None else fitting_tokenizer(text, bundle.config.vocab_size, bundle.path / "tokenizer.json")


def fitting_tokenizer(text: str, vocab_size: int, path: Path) -> Tokenizer:
    """The tokenizer of a model with so many ids. BundleError, with `path` in it, when it is damaged or has more."""
    tokenizer = Tokenizer.from_json(text, name=str(path))
    if tokenizer.vocab_size > vocab_size:
        raise BundleError(f"{path} has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
                          f"{vocab_size - 1}")  # fmt: skip
    return tokenizer


def read_template(bundle: Bundle) -> ChatTemplate | None:
    """The chat template with the special tokens that it may name, None when the bundle has none."""
    source = bundle.text("chat_template.jinja")
    special = read_json(bundle, "tokenizer_config.json")
    tokens = {name: _token_text(special.get(name)) for name in ("bos_token", "eos_token")}
    return None if source is None else ChatTemplate(source, **tokens)


def read_json(bundle: Bundle, name: str) -> dict[str, Any]:
    """The object in one of the small files, empty when there is no such file."""
    text = bundle.text(name)
    try:
        data = json.loads(text) if text else {}
    except (ValueError, RecursionError) as problem:
        raise BundleError(f"{bundle.path / name} is no JSON: {problem}") from None
    return data if isinstance(data, dict) else {}


def read_stop_ids(bundle: Bundle, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The config's ends and generation_config.json's, which Hugging Face lets be a number or a list."""
    more = generation.get("eos_token_id")
    more = more if isinstance(more, list) else [more]
    ids = {*bundle.config.stop_token_ids, *(i for i in more if type(i) is int)}
    return tuple(sorted(i for i in ids if 0 <= i < bundle.config.vocab_size))


def _token_text(value: Any) -> str:
    """A special token in tokenizer_config.json is its text, or an object that holds it."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
