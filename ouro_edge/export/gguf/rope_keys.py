"""Scaled rotary positions in a GGUF file: keys under `rope.scaling.` and the tensor rope_freqs.weight.

The meaning is llama.cpp's (llama-model.cpp, ggml's rope_yarn). It computes yarn from the factor and the original
context alone; the keys that converters add (`yarn_attn_factor`, `yarn_beta_fast`, `yarn_beta_slow`) have the values of
config.json and are read as those. Scalings that llama.cpp cannot compute from keys are written as rope_freqs.weight
[D/2], a divisor of every frequency, which is also how converters write Llama 3.1's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.rope import FACTORS, LINEAR, YARN, RopeScaling, frequency_divisors, yarn_attention_factor
from ouro_edge.arch.weights import Array
from ouro_edge.errors import ConfigError

ROPE_FREQS = "rope_freqs.weight"
_PREFIX = "rope.scaling."
# Keys with a number, and what llama.cpp takes for an absent one; a factor of 0 means 1.
NUMBERS = {
    "rope.scale_linear": 0.0,  # the old name of the factor
    f"{_PREFIX}factor": 0.0,
    f"{_PREFIX}attn_factor": 1.0,
    f"{_PREFIX}yarn_attn_factor": 0.0,
    f"{_PREFIX}yarn_beta_fast": 32.0,
    f"{_PREFIX}yarn_beta_slow": 1.0,
}
TYPE, ORIGINAL = f"{_PREFIX}type", f"{_PREFIX}original_context_length"


def read_scaling(
    kind: str, numbers: dict[str, float], original: int, head_dim: int, divisors: Array | None
) -> RopeScaling | None:
    """The scaling of a file: the value of TYPE, those of NUMBERS, the original context, and rope_freqs.weight."""
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"{TYPE} is {kind!r}; only 'none', 'linear' and 'yarn' are implemented")
    factor = (numbers[f"{_PREFIX}factor"] or numbers["rope.scale_linear"] or 1.0) if kind != "none" else 1.0
    attention = numbers[f"{_PREFIX}attn_factor"]
    if kind == "yarn":
        if divisors is not None:
            raise ConfigError(f"{TYPE} is 'yarn' beside {ROPE_FREQS}; only one of them is implemented")
        attention *= numbers[f"{_PREFIX}yarn_attn_factor"] or yarn_attention_factor(factor)
        fast, slow = numbers[f"{_PREFIX}yarn_beta_fast"], numbers[f"{_PREFIX}yarn_beta_slow"]
        return RopeScaling(type=YARN, factor=factor, original_positions=original, beta_fast=fast, beta_slow=slow,
                           attention_factor=attention)  # fmt: skip
    if divisors is not None or attention != 1:
        each = np.ones(head_dim // 2, np.float32) if divisors is None else divisors.astype(np.float32)
        scaled = (float(str(value)) for value in each * np.float32(factor))
        return RopeScaling(type=FACTORS, factors=tuple(scaled), attention_factor=attention)
    return None if factor == 1 else RopeScaling(type=LINEAR, factor=factor)


def scaling_metadata(config: ModelConfig) -> tuple[dict[str, Any], Array | None]:
    """Metadata of a scaling, without the name of the architecture, and rope_freqs.weight if the file needs it."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}, None
    if scaling.type == LINEAR:
        return {TYPE: LINEAR, f"{_PREFIX}factor": np.float32(scaling.factor)}, None
    usual = RopeScaling(
        type=YARN,
        factor=scaling.factor,
        original_positions=scaling.original_positions,
        attention_factor=yarn_attention_factor(scaling.factor),
    )
    if scaling == usual:
        return {TYPE: YARN, f"{_PREFIX}factor": np.float32(scaling.factor),
                ORIGINAL: np.uint32(scaling.original_positions)}, None  # fmt: skip
    divisors = frequency_divisors(config.rope_theta, config.head_dim, scaling)
    attention = np.float32(scaling.attention_factor)
    return ({} if attention == 1 else {f"{_PREFIX}attn_factor": attention}), divisors
