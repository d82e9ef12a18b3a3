"""Reads completion prompts and embedding inputs: text, a list of texts, token ids, or lists of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouro_edge.runtime.checks import check_ids
from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt."""

    ids: tuple[int, ...]
    text: str
    added: int = 0  # ids at the start that are not in the text
    is_text: bool = True  # whether the request had a text, not token ids


def read_prompts(fields: Fields, name: str, model: Model, most: int) -> list[Prompt]:
    """The prompts in any of OpenAI's four forms; ApiError 400 for anything else, RequestError for ids out of range."""
    value = fields.required(name, fields.any(name))
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(i) is int for i in value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad_field(name, "has the wrong type; expected text, a list of texts, token ids or lists of token ids")
    if len(value) > most:
        raise bad_field(name, f"has {len(value)} items; expected at most {most}")
    return [_prompt(item, f"{name}[{i}]", model) for i, item in enumerate(value)]


def _prompt(item: Any, name: str, model: Model) -> Prompt:
    added, is_text = 0, isinstance(item, str)
    if isinstance(item, str):
        ids = model.tokenizer.encode_text(item)
        added = len(ids) - len(model.tokenizer.encode(item))
    elif isinstance(item, list) and all(type(i) is int for i in item):
        ids = check_ids(item, model.config.vocab_size)
        item = model.tokenizer.decode(ids, skip_special=False) if model.has_tokenizer else ""
    else:
        raise bad_field(name, "has the wrong type; expected text or a list of token ids")
    if not ids:
        raise bad_field(name, "is empty; expected at least one token")
    return Prompt(tuple(ids), item, added, is_text)
