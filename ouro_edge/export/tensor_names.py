"""The names of published checkpoints' tensors, and where fused ones hold which tensors of `arch.weights`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import tensor_shapes

_MODEL_TENSORS = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "model.early_exit_gate.weight": "exit_gate.weight",
    "model.early_exit_gate.bias": "exit_gate.bias",
    "lm_head.weight": "head",
}
_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "o_proj",
    "mlp.gate_proj": "gate_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "down_proj",
}
# Ouro's sandwich norms: `post_attention_layernorm` precedes the MLP, the `_2` norms follow attention and the MLP.
_LAYER_NORMS = {
    True: {
        "input_layernorm_2": "attn_post_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_attention_layernorm_2": "ffn_post_norm",
    },
    False: {"post_attention_layernorm": "ffn_norm"},
}
# Buffers in old checkpoints that follow from the config.
_IGNORED_BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|(transformer\.)?freqs_cis")

# HRM-Text: fused, as they are published, or split, as transformers holds them.
_HRM_LAYER = {
    "attn.gqkv_proj": ("attn_gate_proj", "q_proj", "k_proj", "v_proj"),
    "attn.o_proj": ("o_proj",),
    "self_attn.gate_proj": ("attn_gate_proj",),
    "self_attn.q_proj": ("q_proj",),
    "self_attn.k_proj": ("k_proj",),
    "self_attn.v_proj": ("v_proj",),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    "mlp.gate_proj": ("gate_proj",),
    "mlp.up_proj": ("up_proj",),
    "mlp.down_proj": ("down_proj",),
}

_HRM_TOP = {
    "model.embed_tokens.weight": "embedding",
    "model.z_L_init": "state_init",
    "lm_head.weight": "head",
}
_FUSED_STYLE = ("attn.o_proj",)  # written beside fused tensors; beside split ones it is self_attn.o_proj


class Part(NamedTuple):
    """A tensor in a published one: its canonical name, and its rows, or None for all of them."""

    name: str
    rows: tuple[int, int] | None = None


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a published tensor follows from the config or from another tensor."""
    return _IGNORED_BUFFERS.fullmatch(name) is not None or (name == "lm_head.weight" and config.tie_word_embeddings)


def parts_of(name: str, config: ModelConfig) -> list[Part]:
    """What a published tensor holds; an unknown name is returned as it is, and reported as unexpected later."""
    names = _FAMILIES.get(config.model_type, _one)(name, config)
    if len(names) == 1:
        return [Part(names[0])]
    parts, first, shapes = [], 0, tensor_shapes(config)
    for part in names:
        last = first + shapes[part][0]
        parts.append(Part(part, (first, last)))
        first = last
    return parts


def published_name(name: str, config: ModelConfig) -> str:
    """The published name of one tensor by its canonical name; HRM-Text's are those of transformers, not fused."""
    tops = _HRM_TOP if config.model_type == "hrm_text" else _MODEL_TENSORS
    for published, canonical in tops.items():
        if canonical == name:
            return published
    _, number, part = name.split(".")
    if config.model_type == "hrm_text":
        stack, first = ("L", 0) if int(number) < config.stack_layers[0] else ("H", config.stack_layers[0])
        [published] = [key for key, parts in _HRM_LAYER.items() if parts == (part,) and key not in _FUSED_STYLE]
        return f"model.{stack}_module.layers.{int(number) - first}.{published}.weight"
    parts = {
        canonical: published for published, canonical in (_LAYER_TENSORS | _LAYER_NORMS[config.sandwich_norms]).items()
    }
    return f"model.layers.{number}.{parts[part]}.weight"


def _one(name: str, config: ModelConfig) -> list[str]:
    if name in _MODEL_TENSORS:
        return [_MODEL_TENSORS[name]]
    match = re.fullmatch(r"model\.layers\.(0|[1-9]\d*)\.(.+)\.weight", name)
    part = match and (_LAYER_TENSORS | _LAYER_NORMS[config.sandwich_norms]).get(match[2])
    return [f"layers.{match[1]}.{part}" if match and part else name]


def _hrm_text(name: str, config: ModelConfig) -> list[str]:
    """Layers of the stack H follow those of L."""
    if name in _HRM_TOP:
        return [_HRM_TOP[name]]
    match = re.fullmatch(r"model\.([LH])_module\.layers\.(0|[1-9]\d{0,5})\.(.+)\.weight", name)
    if match is None or match[3] not in _HRM_LAYER or int(match[2]) >= config.stack_layers[match[1] == "H"]:
        return [name]
    number = int(match[2]) + (config.stack_layers[0] if match[1] == "H" else 0)
    return [f"layers.{number}.{part}" for part in _HRM_LAYER[match[3]]]


_FAMILIES: Mapping[str, Callable[[str, ModelConfig], list[str]]] = {"hrm_text": _hrm_text}
