"""The configuration of a model: sizes, loops, norms, exit gate, token ids. Imports `errors` and modules of `arch`.

`ModelConfig` is the form used in the whole package; `from_hf` reads a Hugging Face config.json into it. Fields that can
change the computation are strict (`hf_fields`). Ouro's configuration class has defaults that differ from the published
checkpoints, so there a missing field is an error; llama's defaults are documented and used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ouro_edge.arch.families import FAMILIES, family_names
from ouro_edge.arch.family import Family
from ouro_edge.arch.hf_fields import checked_fields
from ouro_edge.arch.rope import RopeScaling
from ouro_edge.errors import ConfigError

_MAX_DIMENSION = 1 << 24  # bounds what a corrupt header can make the reader allocate
_MAX_LAYERS_OR_LOOPS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a looped transformer; a plain transformer has `loops=1`, no gate and no sandwich norms."""

    model_type: str  # a key of `families.FAMILIES`; the forward pass does not depend on it
    vocab_size: int  # V
    hidden_size: int  # C
    intermediate_size: int  # F
    num_layers: int  # L, the layers of the one shared block
    num_heads: int  # H
    num_kv_heads: int  # KV
    head_dim: int  # D
    loops: int  # R
    max_positions: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    sandwich_norms: bool  # a second norm after attention and after the MLP, before the residual sum
    has_gate: bool
    exit_threshold: float  # the checkpoint's default; 1.0 means that every token runs all loops
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    # Fields of some families, which are left out of files where they have these values.
    stack_layers: tuple[int, ...] = ()  # layers of each stack, in the order of L, where there are several
    cycles: tuple[int, ...] = ()  # how often stacks are repeated, as the family's program says
    embedding_scale: float = 1.0  # factor of the embedding where it enters the first pass
    loop_norm: bool = True  # whether a loop starts from the normed output of the one before it
    prefix_lm: bool = False  # whether the positions of a prompt see each other in both directions
    state_std: float = 0.0  # of the noise that a core was trained to start from; 0 without one
    state_seed: int | None = None  # of that noise; None starts from zeros
    qkv_bias: bool = False  # a bias of queries and keys (zero for values)
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or not 1 <= value <= _MAX_DIMENSION):
                raise ConfigError(f"{field.name} is {value!r}; expected an integer from 1 to {_MAX_DIMENSION}")
            if field.name in ("num_layers", "loops") and value > _MAX_LAYERS_OR_LOOPS:
                raise ConfigError(f"{field.name} is {value}; expected at most {_MAX_LAYERS_OR_LOOPS}")
            if field.type == "bool" and type(value) is not bool:
                raise ConfigError(f"{field.name} is {value!r}; expected true or false")
            if field.type == "int | None" and value is not None and (type(value) is not int or value < 0):
                raise ConfigError(f"{field.name} is {value!r}; expected a token id or null")
            if field.type == "float" and type(value) not in (int, float):
                raise ConfigError(f"{field.name} is {value!r}; expected a number")
            if field.name in ("stack_layers", "cycles") and not all(
                type(n) is int and 0 <= n <= _MAX_DIMENSION for n in value
            ):
                raise ConfigError(f"{field.name} is {value!r}; expected whole numbers")
        if type(self.model_type) is not str or self.model_type not in FAMILIES:
            raise ConfigError(f"model_type is {self.model_type!r}; expected one of {family_names()}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                              f"{self.num_kv_heads}")  # fmt: skip
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary position embeddings need an even number")
        if not 0.0 < self.rms_norm_eps < 1.0 or not 0.0 < self.rope_theta < 1e12:
            raise ConfigError(f"rms_norm_eps {self.rms_norm_eps} or rope_theta {self.rope_theta} is out of range")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.rope_theta, self.head_dim)
        if self.stack_layers and (sum(self.stack_layers) != self.num_layers or 0 in self.stack_layers):
            raise ConfigError(f"stacks of {self.stack_layers} layers do not add up to num_layers {self.num_layers}")
        if (len(self.stack_layers), len(self.cycles)) != (self.family.num_stacks, self.family.num_cycles):
            raise ConfigError(f"stack_layers are {self.stack_layers} and cycles {self.cycles}; expected "
                              f"{self.family.num_stacks} and {self.family.num_cycles} numbers")  # fmt: skip
        if self.family.program is not None:
            self.family.program(self)  # refuses numbers that do not go together
        if self.prefix_lm and self.num_heads != self.num_kv_heads:
            raise ConfigError("prefix_lm is implemented for models with as many key heads as query heads only")
        if not 0.0 < self.embedding_scale < 1e12:
            raise ConfigError(f"embedding_scale is {self.embedding_scale}; expected a positive number")
        if not 0.0 <= self.exit_threshold <= 1.0:
            raise ConfigError(f"early_exit_threshold is {self.exit_threshold}; expected 0 to 1")

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return FAMILIES[self.model_type]

    @property
    def norms(self) -> str:
        """Where a layer has norms, for each part f (attention, MLP) and its norms N.

        "before": x + f(N x). "sandwich": x + N2 f(N1 x). "after the sum": N2(x + f(N1 x)).
        "after the branch": x + N f(x).
        """
        return "sandwich" if self.sandwich_norms else self.family.norms

    @property
    def most_loops(self) -> int:
        """Loops that may be asked for at most."""
        return max(self.loops, self.family.most_loops or 0)

    @property
    def depths(self) -> tuple[int, ...]:
        """The numbers of loops that the model was trained to be read after: all of 1 to R, or R only."""
        return tuple(range(1 if self.family.exits else self.loops, self.loops + 1))

    @property
    def q_size(self) -> int:
        """Width of the concatenated query heads, H * D."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the concatenated key (or value) heads, KV * D."""
        return self.num_kv_heads * self.head_dim

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the config and those of the family."""
        ids = {*self.eos_token_ids, *self.family.stop_ids}
        return tuple(sorted(i for i in ids if i < self.vocab_size))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back. Fields that only some models have may be absent."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _OPTIONAL or value != _OPTIONAL[name]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Read `to_dict`'s form. ConfigError names a missing or unknown key."""
        if not isinstance(data, dict):
            raise ConfigError("model description is not a JSON object")
        names = {field.name for field in dataclasses.fields(cls)}
        if missing := sorted(names - data.keys() - _OPTIONAL.keys()):
            raise ConfigError(f"model description lacks {', '.join(missing)}")
        if unknown := sorted(data.keys() - names):
            raise ConfigError(f"model description has unknown fields {', '.join(unknown)}")
        read: dict[str, Any] = {name: _counts(data[name], name) for name in ("stack_layers", "cycles") if name in data}
        read["eos_token_ids"] = _token_ids(data["eos_token_ids"], "eos_token_ids")
        if (scaling := data.get("rope_scaling")) is not None:
            read["rope_scaling"] = RopeScaling.from_dict(scaling)
        values: dict[str, Any] = {**data, **read}
        return cls(**values)


_OPTIONAL: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(ModelConfig) if field.default is not dataclasses.MISSING
}


def _counts(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {value!r}; expected a list of whole numbers")
    return tuple(value)


def _token_ids(value: Any, name: str) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ConfigError(f"{name} is {value!r}; expected a token id or a list of token ids")
    return ids


def from_hf(data: dict[str, Any], variant: str | None = None) -> ModelConfig:
    """ModelConfig of a Hugging Face config.json of a family in `families`.

    `variant` is the key of the family, where several have the same model_type: see `families.variant`. ConfigError
    names a field that is missing or has a value that the runtime does not implement.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES or FAMILIES[model_type].model_type:
        raise ConfigError(f"model_type is {model_type!r}; expected one of {family_names()}")
    if variant is not None and FAMILIES[variant].model_type == model_type:
        model_type = variant
    family = FAMILIES[model_type]
    more: dict[str, Any] = {}
    if family.translate:
        data, more = family.translate(model_type, data)
    data = checked_fields(data, family)

    def need(name: str) -> Any:
        if data.get(name) is None:
            raise ConfigError(f"config.json lacks {name!r}; add it: upstream's defaults differ from its checkpoints")
        return data[name]

    need("hidden_act")
    hidden, heads = need("hidden_size"), need("num_attention_heads")
    head_dim = data.get("head_dim") if family.derives_head_dim else need("head_dim")
    if head_dim is None:
        if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
            raise ConfigError(
                f"hidden_size {hidden!r} is not a multiple of num_attention_heads {heads!r}: set head_dim"
            )
        head_dim = hidden // heads
    if data.get("kv_channels", head_dim) != head_dim:
        raise ConfigError(f"kv_channels is {data['kv_channels']!r} and head_dim {head_dim!r}; only equal sizes are "
                          "implemented")  # fmt: skip
    passes: dict[str, Any]
    if family.read is not None:
        passes = family.read(data)
    else:
        loops = need(family.loops_field) if family.loops_field else 1
        passes = {"num_layers": need("num_hidden_layers"), "loops": loops}
    if family.skips_loop_norm:
        if type(skips := data.get("skip_loop_final_norm", False)) is not bool:
            raise ConfigError(f"config.json has skip_loop_final_norm = {skips!r}; expected true or false")
        passes["loop_norm"] = not skips
    return ModelConfig(
        model_type=model_type,
        vocab_size=need("vocab_size"),
        hidden_size=hidden,
        intermediate_size=need("intermediate_size"),
        num_heads=heads,
        num_kv_heads=need("num_key_value_heads"),
        head_dim=head_dim,
        max_positions=need("max_position_embeddings"),
        rope_theta=need("rope_theta"),
        rms_norm_eps=need("rms_norm_eps"),
        tie_word_embeddings=need("tie_word_embeddings"),
        sandwich_norms=family.sandwich_norms,
        has_gate=family.gate,
        exit_threshold=need("early_exit_threshold") if family.gate else 1.0,
        bos_token_id=next(iter(_token_ids(data.get("bos_token_id"), "bos_token_id")), None),
        eos_token_ids=_token_ids(data.get("eos_token_id"), "eos_token_id"),
        pad_token_id=next(iter(_token_ids(data.get("pad_token_id"), "pad_token_id")), None),
        rope_scaling=data["rope_scaling"],
        **more,
        **passes,
    )


def check_same(model: ModelConfig, original: ModelConfig) -> None:
    """ConfigError unless a manifest's model equals that of its config.json, which has no field for the gate."""
    for field in dataclasses.fields(model):
        found, expected = getattr(model, field.name), getattr(original, field.name)
        if field.name != "has_gate" and found != expected:
            raise ConfigError(f"{field.name} is {expected!r} in config.json, but {found!r} in the manifest")
