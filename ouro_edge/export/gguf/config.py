"""Reads a GGUF header of a family in `arch.families` into a ModelConfig.

An unknown key of the architecture, or a value that is not implemented, is an error that names the key. A key may be
absent only when the format defines a default. The exit gate is stored in keys of ouro-edge, which llama.cpp ignores:
`ouro_edge.exit_gate.weight` [C], `ouro_edge.exit_gate.bias` [1] and `ouro_edge.exit_threshold`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.families import FAMILIES, family_names
from ouro_edge.arch.family import Family
from ouro_edge.arch.weights import Array
from ouro_edge.errors import ConfigError
from ouro_edge.export.checkpoint import NO_GATE
from ouro_edge.export.gguf.header import Header, Metadata
from ouro_edge.export.gguf.rope_keys import NUMBERS, ORIGINAL, TYPE, read_scaling

GATE_WEIGHT, GATE_BIAS, GATE_THRESHOLD = (
    "ouro_edge.exit_gate.weight",
    "ouro_edge.exit_gate.bias",
    "ouro_edge.exit_threshold",
)
_KNOWN = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_epsilon",  # of a norm that these architectures do not have
    "attention.layer_norm_rms_epsilon",
    "attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.finetuned", ORIGINAL, TYPE, *NUMBERS, "vocab_size",
}  # fmt: skip
# Optional keys, with the only values that the runtime implements.
_FIXED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.key_length_mla": (0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attention.value_length_mla": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "interleave_moe_layer_step": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),  # llama.cpp's name for "not set" is -1
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}
_EXPECTED: dict[tuple[type, ...], str] = {(int,): "an integer", (bool,): "true or false"}
_STOPS = ("eos", "eot", "eom")


def read_config(header: Header, divisors: Array | None = None) -> tuple[ModelConfig, list[str]]:
    """The config of a GGUF file, and notes about ignored values. ConfigError names the invalid key.

    `divisors` are the values of the tensor rope_freqs.weight, which belong to the config.
    """
    metadata, tensors = header.metadata, header.tensors
    arch, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if not isinstance(arch, str) or arch not in FAMILIES or not FAMILIES[arch].has_gguf:
        raise ConfigError(f"general.architecture is {brief(arch)}; expected one of {family_names(gguf=True)}")
    if not isinstance(kind, str) or kind != "model":
        raise ConfigError(f"general.type is {brief(kind)}; expected 'model', a whole model")
    if (parts := _number(metadata, "split.count", 1, (int,))) > 1:
        raise ConfigError(f"split.count is {parts}; merge the {parts} files with llama-gguf-split first")
    family = FAMILIES[arch]
    _check_keys(metadata, f"{arch}.", family)

    def integer(key: str, default: int | None = None) -> int:
        return int(_number(metadata, f"{arch}.{key}", default, (int,)))

    hidden, heads = integer("embedding_length"), integer("attention.head_count")
    if heads < 1:
        raise ConfigError(f"{arch}.attention.head_count is {heads}; expected at least 1")
    head_dim = integer("attention.key_length", None if hidden % heads else hidden // heads)
    for key, default in (("attention.value_length", hidden // heads), ("rope.dimension_count", head_dim)):
        if (value := integer(key, default)) != head_dim:
            raise ConfigError(f"{arch}.{key} is {value} and a head has {head_dim}; only equal sizes are implemented")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError("token_embd.weight is missing or not a matrix; expected one row per token")
    vocab = embedding.shape[0]
    if integer("vocab_size", vocab) != vocab:
        raise ConfigError(f"{arch}.vocab_size is {integer('vocab_size')}, but token_embd.weight has {vocab} rows")
    passes = _passes(metadata, arch, family)
    if (layers := passes["num_layers"]) > len(tensors):
        raise ConfigError(f"{arch}.block_count is {layers}, but the file has {len(tensors)} tensors in all")
    has_gate = family.gate and (GATE_WEIGHT in metadata or GATE_BIAS in metadata)
    ids, notes = _token_ids(metadata, vocab)
    config = ModelConfig(
        model_type=arch,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=integer("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=integer("context_length"),
        rope_theta=_float(metadata, f"{arch}.rope.freq_base", 10000.0),
        rms_norm_eps=_float(metadata, f"{arch}.attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="output.weight" not in tensors,
        sandwich_norms=family.sandwich_norms,
        has_gate=has_gate,
        exit_threshold=_float(metadata, GATE_THRESHOLD, 1.0) if has_gate else 1.0,
        bos_token_id=ids.get("bos"),
        eos_token_ids=tuple(sorted({ids[name] for name in _STOPS if name in ids})),
        pad_token_id=ids.get("padding"),
        rope_scaling=read_scaling(
            kind=_text(metadata, f"{arch}.{TYPE}", "linear"),
            numbers={key: _float(metadata, f"{arch}.{key}", default) for key, default in NUMBERS.items()},
            original=integer(ORIGINAL, integer("context_length")),
            head_dim=head_dim,
            divisors=divisors,
        ),
        loop_norm=not _scalar(metadata.get(f"{arch}.skip_loop_final_norm", False)),
        **passes,
    )
    if family.gate and not has_gate:
        notes.append(NO_GATE)
    return config, notes


def _passes(metadata: Metadata, arch: str, family: Family) -> dict[str, Any]:
    """Fields of ModelConfig about layers and passes."""
    if family.gguf is None:
        loops = _loops(metadata, f"{arch}.{family.loops_key}") if family.loops_key else 1
        return {"num_layers": _number(metadata, f"{arch}.block_count", None, (int,)), "loops": loops}
    values = {
        key: _float(metadata, f"{arch}.{key}") if kind is float else _number(metadata, f"{arch}.{key}", None, (kind,))
        for key, kind in family.gguf.types.items()
    }
    return family.gguf.read(values)


def _loops(metadata: Metadata, key: str) -> int:
    """The number of loops; llama.cpp takes 1 for a missing key, which is not the model that was trained."""
    if key not in metadata:
        raise ConfigError(f"{key} is missing, so the file does not tell how often the layers are run; one pass of a "
                          "looped model gives wrong text: convert the model again")  # fmt: skip
    return int(_number(metadata, key, None, (int,)))


def _check_keys(metadata: Metadata, prefix: str, family: Family) -> None:
    skips = (False, True) if family.skips_loop_norm else (False,)
    fixed = _FIXED | ({"skip_loop_final_norm": skips} if family.loops_key else {})
    known = _KNOWN | ({family.loops_key} if family.loops_key else set())
    known |= family.gguf.types.keys() if family.gguf is not None else set()
    for key in metadata:
        name = key.removeprefix(prefix)
        if name == key or name in known:
            continue
        if name not in fixed:
            raise ConfigError(f"{key} is unknown; remove it from the file if it changes nothing")
        value = _scalar(metadata[key])
        if not isinstance(value, (str, int, float)) or value not in fixed[name]:
            implemented = " or ".join(repr(v) for v in fixed[name])
            raise ConfigError(f"{key} is {brief(value)}; only {implemented} is implemented")


def _token_ids(metadata: Metadata, vocab: int) -> tuple[dict[str, int], list[str]]:
    """Special token ids inside the vocabulary. Converters write a larger id for 'none'; it is ignored with a note."""
    ids, notes = {}, []
    for name in ("bos", "padding", *_STOPS):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in metadata:
            value = _number(metadata, key, None, (int,))
            if 0 <= value < vocab:
                ids[name] = value
            else:
                notes.append(f"{key} {value} is outside the vocabulary of {vocab}: ignored")
    return ids, notes


def _float(metadata: Metadata, key: str, default: float | None = None) -> float:
    """A float32 value as the shortest decimal that rounds to it, so that 1e-6 stays 1e-6."""
    with np.errstate(over="ignore"):
        value = np.float32(_number(metadata, key, default, (int, float)))
    if not np.isfinite(value):
        raise ConfigError(f"{key} is {value}; expected a finite number")
    return float(str(value))


def _text(metadata: Metadata, key: str, default: str) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"{key} is {brief(value)}; expected a text")
    return value


def _number(metadata: Metadata, key: str, default: Any, types: tuple[type, ...]) -> Any:
    value = _scalar(metadata.get(key, default))
    if value is None:
        raise ConfigError(f"{key} is missing; the model cannot be run without it, so convert it again")
    if type(value) not in types:
        raise ConfigError(f"{key} is {brief(value)}; expected {_EXPECTED.get(types, 'a number')}")
    return value


def _scalar(value: Any) -> Any:
    """The one value of an array whose entries are equal (one for each layer); anything else as it is."""
    if isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all():
        return value.flat[0].item()
    if isinstance(value, list) and value and len(set(value)) == 1:
        return value[0]
    return value


def brief(value: Any) -> str:
    """A short one-line form of a value, for error messages."""
    text = f"an array of {len(value)}" if isinstance(value, (list, np.ndarray)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
