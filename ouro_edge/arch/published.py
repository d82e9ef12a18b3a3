"""The published Ouro configurations, to compare a checkpoint with, and what users stumble over in Ouro models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ouro_edge.arch.config import ModelConfig

_COMMON: dict[str, Any] = {
    "loops": 4, "hidden_size": 2048, "intermediate_size": 5632, "num_heads": 16, "num_kv_heads": 16, "head_dim": 128,
    "vocab_size": 49152, "tie_word_embeddings": False, "rope_theta": 1e6, "max_positions": 65536, "rms_norm_eps": 1e-6,
    "has_gate": True, "exit_threshold": 1.0,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Ouro-1.4B": {**_COMMON, "num_layers": 24},
    "Ouro-1.4B-Thinking": {**_COMMON, "num_layers": 24},
    "Ouro-2.6B": {**_COMMON, "num_layers": 48},
    "Ouro-2.6B-Thinking": {**_COMMON, "num_layers": 48},
}
SPECIAL_TOKENS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}  # SmolLM2's tokenizer
_MOST_DIFFERENCES = len(_COMMON) // 2  # beyond this, it is another model


@dataclass(frozen=True, slots=True)
class Comparison:
    """The published configurations that a config is nearest to, and where it differs from them."""

    names: tuple[str, ...]
    differences: tuple[str, ...]  # "rope_theta is 10000.0, published is 1000000.0"


def compare(config: ModelConfig) -> Comparison | None:
    """The nearest published configurations; None when `config` is that of another model."""
    if config.model_type != "ouro":
        return None
    found: dict[tuple[str, ...], list[str]] = {}
    for name, fields in PUBLISHED.items():
        differences = tuple(
            f"{field} is {getattr(config, field)}, published is {value}"
            for field, value in fields.items()
            if getattr(config, field) != value
        )
        found.setdefault(differences, []).append(name)
    nearest = min(found, key=len)
    return Comparison(tuple(found[nearest]), nearest) if len(nearest) <= _MOST_DIFFERENCES else None


_NAMED_OURO = re.compile(r"(?<![a-z])ouro(?![a-z])", re.IGNORECASE)
_BASE_EOS = (0,)  # of the base models' configs; those of the Thinking models have 2


def single_pass_note(name: str, config: ModelConfig) -> str | None:
    """One line about a model that is called Ouro and runs its layers once, as some conversions do; None for others."""
    if config.loops > 1 or not _NAMED_OURO.search(name):
        return None
    return (
        f"this model is called Ouro, but it is a {config.model_type} model that runs its layers once; Ouro runs them "
        "four times, so convert the published checkpoint again"
    )


def base_model_hint(config: ModelConfig) -> str | None:
    """One line about chats with an Ouro base model, whose repository has a chat template as well; None for others."""
    if config.model_type != "ouro" or config.eos_token_ids != _BASE_EOS:
        return None
    return (
        "the stop id 0 is that of Ouro's base models, which answer better without the chat template: --raw continues "
        "plain text"
    )
