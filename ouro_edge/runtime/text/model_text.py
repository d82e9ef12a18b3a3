"""The text side of a model: tokenizer, chat template, sampling settings, stop ids, as its small files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouro_edge.arch.json_object import load_json
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import BundleError
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.runtime.text.reasoning import ReasoningTags, tags_of
from ouro_edge.runtime.text.tokenizer import Tokenizer

ReadText = Callable[[str], str | None]  # name of a small file -> its content, None if there is none


@dataclass(frozen=True, slots=True)
class ModelText:
    """What a Model knows besides its backend. Everything is optional: without a tokenizer it works on token ids."""

    name: str = "model"
    path: Path = Path("model")  # where the files are, for messages
    tokenizer: Tokenizer | None = None
    tokenizer_json: str | None = None  # the source of `tokenizer`, for libraries that compile grammars
    template: ChatTemplate | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json
    stop_ids: tuple[int, ...] = ()  # ids that end an answer
    notes: tuple[str, ...] = ()  # one line each: what a user should know about this model

    @property
    def reasoning_tags(self) -> ReasoningTags:
        """The tags around reasoning: the template's, else those that are tokens of the model, else <think>."""
        tokenizer, source = self.tokenizer, "" if self.template is None else self.template.source
        return tags_of(source, lambda text: tokenizer is not None and tokenizer.token_id(text) is not None)


def read_model_text(bundle: Bundle) -> ModelText:
    """Read the text files of a bundle. BundleError when one is damaged or does not fit the model."""
    generation = _read_json(bundle, "generation_config.json")
    tokenizer = stored_tokenizer(bundle.text, bundle.config.vocab_size, bundle.path)
    stop_ids = read_stop_ids(bundle, generation)
    if tokenizer is not None and not bundle.config.eos_token_ids:  # a config that does not know its tokenizer
        name = _token_text(_read_json(bundle, "tokenizer_config.json").get("eos_token"))
        end = tokenizer.token_id(name) if name else None
        stop_ids = tuple(sorted({*stop_ids, *(() if end is None else (end,))}))
    return ModelText(
        name=bundle.name,
        path=bundle.path,
        tokenizer=tokenizer,
        tokenizer_json=bundle.text("tokenizer.json"),
        template=_read_template(bundle),
        generation=generation,
        stop_ids=stop_ids,
        notes=tuple(bundle.notes),
    )


def stored_tokenizer(text: ReadText, vocab_size: int, folder: Path) -> Tokenizer | None:
    """The tokenizer of the files that `text` reads by name; None without a tokenizer.json. BundleError: damaged."""
    source = text("tokenizer.json")
    if source is None:
        return None
    return fitting_tokenizer(source, vocab_size, folder / "tokenizer.json", _start(text, folder))


def fitting_tokenizer(text: str, vocab_size: int, path: Path, start: str | bool | None = None) -> Tokenizer:
    """The tokenizer of a model with so many ids. BundleError, naming `path`, when it is damaged or has more ids."""
    tokenizer = Tokenizer.from_json(text, name=str(path), start=start)
    if tokenizer.vocab_size > vocab_size:
        raise BundleError(f"{path} has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
                          f"{vocab_size - 1}")  # fmt: skip
    return tokenizer


def read_stop_ids(bundle: Bundle, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The config's stop ids and generation_config.json's, which Hugging Face allows to be a number or a list."""
    more = generation.get("eos_token_id")
    more = more if isinstance(more, list) else [more]
    ids = {*bundle.config.stop_token_ids, *(i for i in more if type(i) is int)}
    return tuple(sorted(i for i in ids if 0 <= i < bundle.config.vocab_size))


def _start(text: ReadText, folder: Path) -> str | bool | None:
    """tokenizer_config.json's word on BOS before a text, which overrules tokenizer.json's as in llama.cpp."""
    settings = _object(text("tokenizer_config.json"), folder / "tokenizer_config.json")
    adds = settings.get("add_bos_token")
    if not isinstance(adds, bool):
        return None
    if not adds:
        return False
    places = settings, _object(text("special_tokens_map.json"), folder / "special_tokens_map.json")
    return next((token for place in places if (token := _token_text(place.get("bos_token")))), None)


def _read_template(bundle: Bundle) -> ChatTemplate | None:
    """The chat template with the special tokens that it may name; None when the bundle has none."""
    source = bundle.text("chat_template.jinja")
    special = _read_json(bundle, "tokenizer_config.json")
    tokens = {name: _token_text(special.get(name)) for name in ("bos_token", "eos_token")}
    return None if source is None else ChatTemplate(source, **tokens)


def _read_json(bundle: Bundle, name: str) -> dict[str, Any]:
    """The object in one of the small files; empty when there is no such file."""
    return _object(bundle.text(name), bundle.path / name)


def _object(text: str | None, file: Path) -> dict[str, Any]:
    try:
        data = load_json(text.removeprefix("\ufeff")) if text else {}
    except ValueError as problem:
        raise BundleError(f"{file} is not valid JSON: {problem}") from None
    return data if isinstance(data, dict) else {}


def _token_text(value: Any) -> str:
    """A special token in tokenizer_config.json is its text, or an object that holds it."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
