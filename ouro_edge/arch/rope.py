"""Rotary position embeddings: inverse frequencies and attention factor, with the scalings for long contexts.

The formulas are those of transformers 4.57 (modeling_rope_utils.py), which name their sources: linear interpolation
(arXiv 2306.15595), YaRN (arXiv 2309.00071) and Llama 3.1. They are computed in float32 as there, because the rounding
is part of the model. D is the head dimension; pair i of D/2 turns by position * frequency[i].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import ConfigError

LINEAR, LLAMA3, YARN, FACTORS = "linear", "llama3", "yarn", "factors"
_MAX_POSITIONS = 1 << 30
_MAX_VALUE = 1e9  # of factors and betas; beyond it a config is damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A scaling of rotary positions. ConfigError when a value is out of range."""

    type: str  # LINEAR, LLAMA3, YARN or FACTORS
    factor: float = 1.0  # of the context (all but FACTORS)
    original_positions: int = 1  # the context before the scaling (LLAMA3, YARN)
    low_freq_factor: float = 1.0  # LLAMA3: longer waves than original_positions / this are scaled
    high_freq_factor: float = 4.0  # LLAMA3: shorter waves than original_positions / this are not
    beta_fast: float = 32.0  # YARN: pairs that turn more often than this are not scaled
    beta_slow: float = 1.0  # YARN: pairs that turn less often are scaled by the whole factor
    truncate: bool = True  # YARN: whether the bounds between these are rounded to whole pairs
    attention_factor: float = 1.0  # YARN, FACTORS: multiplies cos and sin
    factors: tuple[float, ...] = ()  # FACTORS: a divisor of each of the D/2 frequencies

    def __post_init__(self) -> None:
        if self.type not in (LINEAR, LLAMA3, YARN, FACTORS):
            raise ConfigError(f"rope scaling has type {self.type!r}; expected {LINEAR}, {LLAMA3}, {YARN} or {FACTORS}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not _is_positive(value):
                raise ConfigError(f"{field.name} of rope scaling is {value!r}; expected a positive number")
        if type(self.original_positions) is not int or not 1 <= self.original_positions <= _MAX_POSITIONS:
            raise ConfigError(f"original_positions of rope scaling is {self.original_positions!r}; expected a number "
                              "of positions")  # fmt: skip
        if type(self.truncate) is not bool:
            raise ConfigError(f"truncate of rope scaling is {self.truncate!r}; expected true or false")
        if not isinstance(self.factors, tuple) or not all(map(_is_positive, self.factors)):
            raise ConfigError("factors of rope scaling are not a list of positive numbers")
        if self.type == LLAMA3 and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(f"high_freq_factor of rope scaling is {self.high_freq_factor}; expected more than "
                              f"low_freq_factor, {self.low_freq_factor}")  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> RopeScaling:
        """Read what `dataclasses.asdict` and JSON make of an object. ConfigError for other fields or values."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or "type" not in data or data.keys() - names:
            raise ConfigError(f"rope_scaling is {data!r}; expected an object with {', '.join(sorted(names))}")
        factors = data.get("factors", ())
        return cls(**{**data, "factors": tuple(factors) if isinstance(factors, (list, tuple)) else factors})

    def check(self, theta: float, head_dim: int) -> None:
        """ConfigError unless the scaling can be applied to frequencies with this base and number of dimensions."""
        if self.type == FACTORS and len(self.factors) != head_dim // 2:
            raise ConfigError(f"rope scaling has {len(self.factors)} factors; expected {head_dim // 2}, one for each "
                              "pair of a head's dimensions")  # fmt: skip
        if self.type == YARN and theta <= 1:
            raise ConfigError(f"rope_theta is {theta}; a yarn scaling needs more than 1")


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= _MAX_VALUE  # type: ignore[operator]


def yarn_attention_factor(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's factor of cos and sin (equation 22 of the paper, as a factor of both): 0.1 ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None = None) -> NDArray[np.float32]:
    """Radians per position [D/2] of every pair of dimensions."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    waves: NDArray[np.float32] = np.float32(theta) ** exponents  # positions per radian
    plain = np.float32(1.0) / waves
    if scaling is None:
        return plain
    if scaling.type == LINEAR:
        return plain / np.float32(scaling.factor)
    if scaling.type == LLAMA3:
        return _llama3(plain, scaling)
    if scaling.type == YARN:
        return _yarn(waves, theta, head_dim, scaling)
    divisors: NDArray[np.float32] = np.array(scaling.factors, np.float32)
    return np.float32(1.0) / (divisors * waves)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by."""
    return 1.0 if scaling is None else scaling.attention_factor


def frequency_divisors(theta: float, head_dim: int, scaling: RopeScaling) -> NDArray[np.float32]:
    """The divisors [D/2] that turn plain frequencies into scaled ones, as in GGUF's rope_freqs.weight."""
    if scaling.type == FACTORS:
        return np.array(scaling.factors, np.float32)
    plain = inverse_frequencies(theta, head_dim).astype(np.float64)
    return (plain / inverse_frequencies(theta, head_dim, scaling)).astype(np.float32)


def _llama3(plain: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """Waves longer than a part of the original context are scaled, short ones are not, those between in part."""
    length, factor = scaling.original_positions, np.float32(scaling.factor)
    wave = np.float32(2 * math.pi) / plain
    low, high = length / scaling.low_freq_factor, length / scaling.high_freq_factor
    span = np.float32(scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = (np.float32(length) / wave - np.float32(scaling.low_freq_factor)) / span
    between = (np.float32(1) - smooth) * plain / factor + smooth * plain
    scaled: NDArray[np.float32] = np.where(wave > low, plain / factor, np.where(wave < high, plain, between))
    return scaled


def _yarn(waves: NDArray[np.float32], theta: float, head_dim: int, scaling: RopeScaling) -> NDArray[np.float32]:
    """Frequencies between those of the original and of the interpolated positions, by a ramp over the pairs."""

    def pair(turns: float) -> float:
        """The pair of dimensions that turns this often within the original context, as a fraction."""
        return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = np.arange(head_dim // 2, dtype=np.float32)
    original = np.float32(1) - np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)  # 1: not scaled
    interpolated = np.float32(1) / (np.float32(scaling.factor) * waves)
    scaled: NDArray[np.float32] = interpolated * (np.float32(1) - original) + np.float32(1) / waves * original
    return scaled
