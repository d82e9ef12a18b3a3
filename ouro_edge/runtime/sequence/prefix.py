"""Beginnings of prompts: what two have in common, and how much of one sees itself in both directions."""

from __future__ import annotations

from collections.abc import Sequence

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import check_whole


def check_prefix(config: ModelConfig, prefix: int, length: int) -> int:
    """The length of a prefix that sees itself in both directions. RequestError unless the model and prompt allow it."""
    check_whole("prefix", prefix, 0, length, ", the tokens of the prompt")
    if prefix and not config.prefix_lm:
        raise RequestError(f"prefix is {prefix}; this model's config does not say prefix_lm, so its prompts are "
                           "causal: leave it out")  # fmt: skip
    return prefix


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading items that are equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
