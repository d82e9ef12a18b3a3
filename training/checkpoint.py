"""Files: a resumable training state, and the Hugging Face directory that is its result.

Written beside, then renamed: nothing half-written looks finished. Knows file names and nothing of training.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .model import ModelConfig, Ouro
from .tokenizer import BOS, CHAT_TEMPLATE, EOS, PAD, tokenizer_config


def save_state(path: Path, state: dict[str, Any]) -> None:
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


def export(out: Path, model: Ouro, tokenizer: Tokenizer, log: Path | None = None) -> None:
    """Write a normal checkpoint directory; an older one at `out` is replaced only when the new one is complete."""
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)

    def put(name: str, value: dict) -> None:
        (beside / name).write_text(json.dumps(value, indent=2) + "\n")

    put("config.json", model.config.to_hf(BOS, EOS, PAD))
    put("generation_config.json", {
        "bos_token_id": BOS, "eos_token_id": [EOS, PAD], "pad_token_id": PAD, "do_sample": False, "max_new_tokens": 64,
    })  # fmt: skip
    put("tokenizer_config.json", tokenizer_config(model.config.max_position_embeddings))
    (beside / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(beside / "tokenizer.json"))
    tensors = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "model.safetensors").chmod(0o644)  # safetensors makes it private
    if log is not None and log.exists():
        shutil.copy(log, beside / "training_log.jsonl")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


def load_model(path: Path) -> tuple[Ouro, Tokenizer]:
    model = Ouro(ModelConfig.from_hf(json.loads((path / "config.json").read_text())))
    tensors = load_file(path / "model.safetensors")
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    return model, Tokenizer.from_file(str(path / "tokenizer.json"))
