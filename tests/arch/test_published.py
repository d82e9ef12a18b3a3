"""The published Ouro configurations: parameter and tensor counts, and how a config is compared with them."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
from models import hf_config

from ouro_edge.arch.config import ModelConfig, from_hf
from ouro_edge.arch.published import PUBLISHED, compare
from ouro_edge.arch.weights import tensor_shapes


def published(name: str, **changes: Any) -> ModelConfig:
    return replace(from_hf(hf_config()), **{**PUBLISHED[name], **changes})


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("Ouro-1.4B", 1_434_652_673, 269), ("Ouro-2.6B-Thinking", 2_667_974_657, 533)],
)
def test_sizes_are_those_of_the_published_files(name: str, parameters: int, tensors: int) -> None:
    shapes = tensor_shapes(published(name))
    assert (sum(map(prod, shapes.values())), len(shapes)) == (parameters, tensors)


def test_a_published_config_is_recognised() -> None:
    found = compare(published("Ouro-2.6B"))
    assert found is not None
    assert found.names == ("Ouro-2.6B", "Ouro-2.6B-Thinking") and found.differences == ()


def test_a_wrong_field_is_named() -> None:
    found = compare(published("Ouro-1.4B", rope_theta=10000.0))
    assert found is not None and found.names[0] == "Ouro-1.4B"
    assert found.differences == ("rope_theta is 10000.0, published is 1000000.0",)


@pytest.mark.parametrize("changes", [{}, {"model_type": "llama", "tie_word_embeddings": True}])
def test_another_model_is_not_compared(changes: dict[str, Any]) -> None:
    assert compare(from_hf(hf_config(**changes))) is None
