"""Tokenizer, chat template and generation defaults as GGUF metadata; read by `tokenizer` and `reader`.

tokenizer.json is stored unchanged in `tokenizer.huggingface.json`, for ouro-edge. For other programs, GGUF's own
vocabulary is added if it is equivalent: byte-level BPE with a splitting rule that has a name in GGUF. Otherwise it is
omitted ("no_vocab"), because an almost correct tokenizer would give wrong ids silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.text.tokenizer import CONTROL, NORMAL, UNUSED, USER, pre_of

Pairs = dict[str, Any]  # strings, numbers, lists of strings, arrays

_SAMPLING = {
    "temperature": ("temp", np.float32),
    "top_k": ("top_k", np.int32),
    "top_p": ("top_p", np.float32),
    "min_p": ("min_p", np.float32),
    "repetition_penalty": ("penalty_repeat", np.float32),
}


def text_metadata(config: ModelConfig, files: Mapping[str, bytes]) -> tuple[Pairs, list[str]]:
    """Metadata for a model's text files, and notes about parts that other programs cannot use.

    CheckpointError when one of the files is damaged or the tokenizer has more tokens than the model.
    """
    pairs: Pairs = {}
    notes: list[str] = []
    generation = _object(files, "generation_config.json")
    if "tokenizer.json" in files:
        vocabulary = _vocabulary(_object(files, "tokenizer.json"), config.vocab_size)
        adds = _object(files, "tokenizer_config.json").get("add_bos_token")
        if isinstance(adds, bool):
            pairs["tokenizer.ggml.add_bos_token"] = adds
        pairs["tokenizer.huggingface.json"] = _text(files, "tokenizer.json")
        if vocabulary is None:
            notes.append("this tokenizer has no form in GGUF: only ouro-edge can use it, from its own tokenizer.json")
        pairs = (vocabulary or {"tokenizer.ggml.model": "no_vocab"}) | pairs
    else:
        pairs["tokenizer.ggml.model"] = "no_vocab"
    if "chat_template.jinja" in files:
        pairs["tokenizer.chat_template"] = _text(files, "chat_template.jinja")
    return pairs | _special_ids(config, generation, _end_of_turn(files)) | _sampling(generation), notes


def _vocabulary(tokenizer: dict[str, Any], size: int) -> Pairs | None:
    """Tokens, kinds and merges for tokenizer.ggml; None unless it is byte-level BPE with a name in GGUF."""
    model = tokenizer.get("model")
    pre = pre_of(tokenizer)
    if pre is None or not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return None
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], np.full(size, UNUSED, np.int32)
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or ()}
    for text, i in {**model["vocab"], **{entry["content"]: i for i, entry in added.items()}}.items():
        if type(i) is not int or not 0 <= i < size:
            raise CheckpointError(f"tokenizer.json gives {text[:40]!r} the id {i!r}; the model has {size} tokens")
        tokens[i], kinds[i] = text, NORMAL
        if i in added:
            kinds[i] = CONTROL if added[i].get("special") else USER
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": _adds_bos(tokenizer),
    }


def _adds_bos(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer adds a token before a text."""
    processor = tokenizer.get("post_processor")
    if isinstance(processor, dict) and isinstance(
        parts := processor.get("processors"), list
    ):  # a sequence, as Llama 3's
        return any(_adds_bos({"post_processor": part}) for part in parts)
    single = processor.get("single") if isinstance(processor, dict) else None
    return isinstance(single, list) and bool(single) and isinstance(single[0], dict) and "SpecialToken" in single[0]


def _end_of_turn(files: Mapping[str, bytes]) -> int | None:
    """The id of eos_token in tokenizer_config.json, which the chat template may use."""
    token = _object(files, "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    added = _object(files, "tokenizer.json").get("added_tokens") or ()
    return next((entry["id"] for entry in added if entry["content"] == token), None)


def _special_ids(config: ModelConfig, generation: dict[str, Any], first: int | None) -> Pairs:
    """Special ids. GGUF has three keys for tokens that end an answer; further ones are omitted."""
    more = generation.get("eos_token_id")
    more = [i for i in (more if isinstance(more, list) else [more]) if type(i) is int and 0 <= i < config.vocab_size]
    ends = dict.fromkeys([*config.eos_token_ids, *more, *config.stop_token_ids])
    ends = dict.fromkeys([first, *ends]) if first in ends else ends
    names = ("eos", "eot", "eom")
    ids = dict(zip(names, ends, strict=False)) | {"bos": config.bos_token_id, "padding": config.pad_token_id}
    return {f"tokenizer.ggml.{name}_token_id": np.uint32(i) for name, i in ids.items()
            if i is not None and 0 <= i < config.vocab_size}  # fmt: skip


def _sampling(generation: dict[str, Any]) -> Pairs:
    """The sampling defaults of generation_config.json, under llama.cpp's keys."""
    used = ["repetition_penalty"] + (list(_SAMPLING) if generation.get("do_sample") is True else [])
    return {
        f"general.sampling.{key}": kind(generation[name])
        for name, (key, kind) in _SAMPLING.items()
        if name in used and type(generation.get(name)) in (int, float) and 0 <= generation[name] < 1e9
    }


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json_object(files[name], name, CheckpointError) if name in files else {}


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{name} is not UTF-8") from None


def read_generation(metadata: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """generation_config.json from a file's special ids and sampling defaults."""
    ids = {"eos_token_id": list(config.eos_token_ids) or None, "bos_token_id": config.bos_token_id,
           "pad_token_id": config.pad_token_id}  # fmt: skip
    found = {name: metadata.get(f"general.sampling.{key}") for name, (key, _) in _SAMPLING.items()}
    settings = {
        name: value if type(value) is int else float(str(np.float32(value)))
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    }
    do_sample = {"do_sample": True} if settings.keys() - {"repetition_penalty"} else {}
    return {name: value for name, value in ids.items() if value is not None} | do_sample | settings
