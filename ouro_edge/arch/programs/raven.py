"""The Raven family: Huginn-0125 and the retrofits of Llama, TinyLlama and OLMo 2. Translates config.json.

A prelude of layers makes an embedding e of the tokens, a core of layers is applied N times to a state s and e, and a
coda of layers turns the last state into what the head reads (arXiv 2502.05171). All published models have the
model_type huginn_raven and nearly the same config.json; the layers differ, and only the names of the tensors tell which
they are:

    Huginn   x = N2(attention(N1 x) + x); x = N4(mlp(N3 x) + x)     bias on q and k, adjacent rotary pairs, ln_f also
                                                                     before the coda, embedding times sqrt(width)
    Llama    x = x + attention(N1 x);     x = x + mlp(N2 x)          grouped heads, rotary scaling
    OLMo 2   x = x + N1(attention(x));    x = x + N2(mlp(x))         norms of the whole q and k row

A state row is [e | s]: what every step of the core gets of the tokens, and the state. The first row is [x | s0], the
scaled embedding and zeros; the prelude replaces the first part, the core the second, and so does the coda, whose output
the head reads.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import cache
from math import sqrt
from typing import TYPE_CHECKING, Any

from ouro_edge.arch.family import Family
from ouro_edge.arch.stacks import LoopPass, LoopProgram, Stack
from ouro_edge.errors import ConfigError

if TYPE_CHECKING:
    from ouro_edge.arch.config import ModelConfig

MODEL_TYPE = "huginn_raven"
HUGINN, LLAMA, OLMO = MODEL_TYPE, "huginn_raven_llama", "huginn_raven_olmo"  # keys of `families.FAMILIES`
MOST_LOOPS = 128  # published evaluations go to 64
PRELUDE, CORE, CODA = "prelude", "core", "coda"  # the stacks, in order

# Their names in config.json -> the names of other families.
_RENAMED = {
    "n_embd": "hidden_size",
    "n_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "padded_vocab_size": "vocab_size",
    "tie_embeddings": "tie_word_embeddings",
    "nonlin_name": "hidden_act",
}
_STACK_FIELDS = {PRELUDE: "n_layers_in_prelude", CORE: "n_layers_in_recurrent_block", CODA: "n_layers_in_coda"}
# Fields that are read, or say what was trained; those of transformers' forms are in `hf_fields`.
FIELDS = frozenset(_RENAMED) | frozenset(
    "activation_checkpoint_impl architecture_class_name block_size effective_expected_depth init_orthogonal "
    "init_strategy init_values mean_backprop_depth mean_recurrence n_layers n_layers_in_coda n_layers_in_prelude "
    "n_layers_in_recurrent_block "
    "padding_multiple qk_bias rope_base sampling_scheme state_init test_time_noise_type".split()
)
ONLY_VALUES: Mapping[str, tuple[Any, ...]] = {
    "bias": (False,),
    "initial_state_mode": ("random",),  # of forks: others start from the embedding, or leave the adapter out at step 1
    "block_class_name": ("SandwichBlock",),  # also in the retrofits, whose layers are others
    "injection_type": ("linear",),
    "mlp_class_name": ("GatedMLP",),
    "norm_class_name": ("RMSNorm_llama",),
    "test_time_noise": (0,),
}


def program(config: ModelConfig) -> LoopProgram:
    """Prelude, any number of steps of the core, and the coda after the exit; each with a cache of its own."""
    return _program(config.stack_layers, config.hidden_size, config.embedding_scale, config.family.coda_norm,
                    config.loops, config.most_loops,
                    None if config.state_seed is None else (config.state_std, config.state_seed))  # fmt: skip


@cache
def _program(
    layers: tuple[int, ...],
    width: int,
    scale: float,
    coda_norm: bool,
    usual_loops: int,
    most_loops: int,
    noise: tuple[float, int] | None,
) -> LoopProgram:
    ranges = stack_ranges(layers)
    stacks = (
        Stack(PRELUDE, ranges[PRELUDE], "first", "first", closing_norm=False),
        Stack(CORE, ranges[CORE], "adapter", "second", closing_norm=False),
        Stack(CODA, ranges[CODA], "second", "second", opening_norm=coda_norm),
    )
    steps = tuple(LoopPass(CORE, step) for step in range(1, most_loops + 1))
    return LoopProgram(
        (LoopPass(PRELUDE, 0, may_exit=False), *steps), 2 * width, stacks, scale,
        output_at=width, first_loop=1, coda=LoopPass(CODA, most_loops + 1), usual_loops=usual_loops,
        noise=noise,
    )  # fmt: skip


def variant(names: Container[str]) -> str:
    """The key in `families.FAMILIES` of a checkpoint with tensors of these names."""
    layer = "transformer.core_block.0."
    if layer + "norm_3.weight" in names:
        return HUGINN
    return OLMO if layer + "attn.q_norm.weight" in names else LLAMA


def stack_ranges(layers: tuple[int, ...]) -> dict[str, range]:
    """The numbers of the layers of each stack, by its name."""
    prelude, core, _ = layers
    return {PRELUDE: range(prelude), CORE: range(prelude, prelude + core), CODA: range(prelude + core, sum(layers))}


def translate(key: str, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of one variant in the names of other families, and further fields of `ModelConfig`.

    ConfigError names what is missing or does not fit.
    """
    for old, new in _RENAMED.items():
        if new in data and data[new] is not None and data.get(old) not in (None, data[new]) and new != "vocab_size":
            raise ConfigError(
                f"config.json has {old} = {data.get(old)!r} and {new} = {data[new]!r}; expected one value"
            )
    found = {_RENAMED.get(name, name): value for name, value in data.items() if name != "vocab_size"}
    for name in (*_RENAMED, *_STACK_FIELDS.values(), "mean_recurrence", "block_size", "init_values"):
        if data.get(name) is None:
            raise ConfigError(f"config.json lacks {name!r}, which models of type {MODEL_TYPE} have")
    found["hidden_act"] = str(data["nonlin_name"]).lower()
    stacks = {stack: data[name] for stack, name in _STACK_FIELDS.items()}
    for name in (*_STACK_FIELDS.values(), "mean_recurrence"):
        if not _at_most(data[name], 4096):
            raise ConfigError(f"config.json has {name} = {data[name]!r}; expected a whole number from 1 to 4096")
    found["num_hidden_layers"] = sum(stacks.values())
    if data.get("n_layers") not in (None, sum(stacks.values())):
        raise ConfigError(f"config.json has n_layers = {data['n_layers']!r}, but {stacks} layers in the stacks")
    width, heads, init = data["n_embd"], data["n_heads"], data["init_values"]
    if type(width) is not int or type(heads) is not int or heads < 1 or width < 1 or width % heads:
        raise ConfigError(f"n_embd {width!r} is not a multiple of n_heads {heads!r}")
    if data.get("head_dim") not in (None, width // heads):
        raise ConfigError(f"config.json has head_dim = {data['head_dim']!r}; this family divides n_embd by n_heads: "
                          f"{width // heads}")  # fmt: skip
    if data.get("vocab_size") is not None and not _at_most(data["vocab_size"], data["padded_vocab_size"]):
        raise ConfigError(f"config.json has vocab_size = {data['vocab_size']!r} and padded_vocab_size = "
                          f"{data['padded_vocab_size']!r}; the second includes the first")  # fmt: skip
    found["num_key_value_heads"] = heads if data.get("num_key_value_heads") is None else data["num_key_value_heads"]
    std, scale = (_number(init, name) for name in ("std", "embed_scale"))
    if key == HUGINN:
        scale = sqrt(width)  # the published code ignores the field
        found |= {"max_position_embeddings": data["block_size"], "rope_theta": data.get("rope_base")}
        for name in ("rope_scaling", "rope_parameters"):
            found.pop(name, None)
        if found["num_key_value_heads"] != heads:
            raise ConfigError(f"config.json has num_key_value_heads = {found['num_key_value_heads']!r}; Huginn has as "
                              f"many as n_heads, {heads}")  # fmt: skip
    else:
        found.setdefault("max_position_embeddings", data["block_size"])
        if data.get("qk_bias"):
            raise ConfigError("config.json has qk_bias = true, which only Huginn's layers have")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found.pop(name, None)  # Huginn's, whose vocabulary these models do not have
    more = {"stack_layers": tuple(stacks.values()), "embedding_scale": scale, "state_std": std * scale}
    return found, more | {"qkv_bias": bool(data.get("qk_bias"))}


def _number(values: Any, name: str) -> float:
    value = values.get(name) if isinstance(values, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(f"config.json has {name} = {value!r} in init_values; expected a positive number")
    return float(value)


def _at_most(value: Any, most: Any) -> bool:
    return type(value) is int and type(most) is int and 1 <= value <= most


def _family(norms: str, **options: Any) -> Family:
    return Family(
        architecture="RavenForCausalLM", loops_field="mean_recurrence", loops_key=None, translate=translate,
        norms=norms, adapter=True, most_loops=MOST_LOOPS, num_stacks=3, program=program, has_gguf=False, fields=FIELDS,
        only_values=ONLY_VALUES, **options,
    )  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    HUGINN: _family(
        "after the sum", variant=variant, rotates_pairs=True, coda_norm=True,
        stop_ids=frozenset((65504, 65505, 65508)),  # in the published code
    ),
    LLAMA: _family("before", model_type=MODEL_TYPE),
    OLMO: _family("after the branch", model_type=MODEL_TYPE, qk_norm=True),
}  # fmt: skip
