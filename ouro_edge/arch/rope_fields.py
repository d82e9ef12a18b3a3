"""Rotary positions in a Hugging Face config.json: `rope_theta`, `rope_scaling` and transformers 5's `rope_parameters`.

Types that are a table of frequencies are read. Others are errors that name them: `dynamic` changes with the length of
the text, and `longrope` too, unless both of its lists are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ouro_edge.arch.rope import FACTORS, LINEAR, LLAMA3, YARN, RopeScaling, yarn_attention_factor
from ouro_edge.errors import ConfigError

_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
_OPTIONAL = {
    "linear": ("original_max_position_embeddings",),
    "llama3": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
             "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings"),
}  # fmt: skip
_NAMES = ("rope_type", "type")
# Keys of older code, with the values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1,), "extrapolation_factor": (1,), "attn_factor": (1,), "finetuned": (True, False),
}  # fmt: skip


def read_rope(fields: dict[str, Any], max_positions: int | None = None) -> None:
    """Replace the fields about rotary positions by `rope_scaling`, a RopeScaling or None, and set `rope_theta`.

    `fields` has no nulls; `max_positions` is the default of `max_position_embeddings`. ConfigError names a wrong field.
    """
    found, max_positions = [], fields.get("max_position_embeddings", max_positions)
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.pop(name, None)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"config.json has {name} = {rope!r}; expected an object or null")
        given = {key: value for key, value in rope.items() if value is not None}
        theta = given.pop("rope_theta", None)
        if theta is not None and fields.setdefault("rope_theta", theta) != theta:
            raise ConfigError(f"config.json has rope_theta = {fields['rope_theta']!r} and {theta!r} in {name}; remove "
                              "one of them")  # fmt: skip
        scaling = _scaling(name, given, max_positions)
        found += [] if scaling is None else [(name, scaling)]
    if len({scaling for _, scaling in found}) > 1:
        raise ConfigError("config.json has rope_parameters and rope_scaling that differ; remove one of them")
    fields["rope_scaling"] = found[0][1] if found else None


def rope_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of `rope_scaling` in config.json, which `read_rope` reads back."""
    if scaling is None:
        return None
    if scaling.type == FACTORS:
        factors = list(scaling.factors)
        return {"rope_type": "longrope", "factor": 1.0, "attention_factor": scaling.attention_factor,
                "short_factor": factors, "long_factor": factors}  # fmt: skip
    names = _NEEDED[scaling.type] + (_OPTIONAL["yarn"] if scaling.type == YARN else ())
    values = {name: getattr(scaling, _field(name)) for name in names if not name.startswith("mscale")}
    return {"rope_type": scaling.type, **values}


def _field(name: str) -> str:
    return "original_positions" if name == "original_max_position_embeddings" else name


def _scaling(name: str, rope: dict[str, Any], max_positions: Any) -> RopeScaling | None:
    kinds = [rope[key] for key in _NAMES if key in rope]
    if not all(kind == kinds[0] for kind in kinds) or not all(isinstance(kind, str) for kind in kinds):
        raise _refused(name, rope, "one rope_type")
    kind = kinds[0] if kinds else None
    rest = {key: value for key, value in rope.items() if key not in _NAMES}
    for key in list(rest.keys() & _NEUTRAL.keys()):
        if rest.pop(key) not in _NEUTRAL[key]:
            raise _refused(name, rope, f"{key} {_NEUTRAL[key][0]}")
    plain = kind in ("default", "none") or rest.get("factor", None if kind else 1) == 1
    if plain and rest.get("attention_factor", 1) == 1 and not any(isinstance(v, (list, dict)) for v in rest.values()):
        return None
    if kind not in _NEEDED:
        raise _refused(name, rope, "rope_type linear, llama3 or yarn")
    if missing := [key for key in _NEEDED[kind] if key not in rest]:
        raise ConfigError(f"config.json has {name} of type {kind!r} without {', '.join(missing)}; add what the model "
                          "was trained with")  # fmt: skip
    if unknown := sorted(rest.keys() - {*_NEEDED[kind], *_OPTIONAL[kind]}):
        raise _refused(name, rope, f"a {kind} scaling without {', '.join(unknown)}")
    try:
        return _READ[kind](rest, max_positions)
    except ConfigError as problem:
        raise ConfigError(f"config.json has {name} = {rope!r}: {problem}") from None


def _refused(name: str, rope: dict[str, Any], implemented: str) -> ConfigError:
    return ConfigError(f"config.json has {name} = {rope!r}; only {implemented} is implemented")


def _linear(rope: dict[str, Any], _: Any) -> RopeScaling:
    return RopeScaling(type=LINEAR, factor=rope["factor"])


def _llama3(rope: dict[str, Any], _: Any) -> RopeScaling:
    return RopeScaling(type=LLAMA3, **{_field(name): rope[name] for name in _NEEDED["llama3"]})


def _yarn(rope: dict[str, Any], max_positions: Any) -> RopeScaling:
    """transformers takes max_position_embeddings for the original context, and a beta of 0 for an absent one."""
    scaling = RopeScaling(
        type=YARN,
        factor=rope["factor"],
        original_positions=rope.get("original_max_position_embeddings") or max_positions,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),
    )
    of_cos_and_sin = rope.get("attention_factor")
    if of_cos_and_sin is None:
        above, below = rope.get("mscale"), rope.get("mscale_all_dim")
        if any(type(value) not in (int, float, type(None)) for value in (above, below)):
            raise ConfigError("mscale and mscale_all_dim are not numbers")
        of_cos_and_sin = yarn_attention_factor(scaling.factor)
        if above and below:
            of_cos_and_sin = yarn_attention_factor(scaling.factor, above) / yarn_attention_factor(scaling.factor, below)
    return dataclasses.replace(scaling, attention_factor=of_cos_and_sin)


def _longrope(rope: dict[str, Any], _: Any) -> RopeScaling:
    short, long = rope["short_factor"], rope["long_factor"]
    if not isinstance(short, list) or short != long:
        raise ConfigError("longrope is implemented only where short_factor and long_factor are equal lists")
    return RopeScaling(type=FACTORS, factors=tuple(short), attention_factor=rope["attention_factor"])


_READ = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
