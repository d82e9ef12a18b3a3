"""Names and rows of fused tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ouro_edge.arch.config import from_hf
from ouro_edge.arch.weights import block_tensors, fused_names, fused_rows, head_tensor, tensor_shapes


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_has_its_rows_in_one_fused_tensor(checkpoint_of: Callable[..., Path], tied: bool) -> None:
    config = from_hf(json.loads((checkpoint_of(tie_word_embeddings=tied) / "config.json").read_text()))
    shapes, rows = tensor_shapes(config), fused_rows(config)
    assert list(rows) == [part for parts in fused_names(config).values() for part in parts]
    assert set(rows) == set(shapes)
    assert all(last - first == shapes[name][0] for name, (_, first, last) in rows.items())
    kv = config.kv_size
    assert rows["layers.1.k_proj"] == ("layers.1.qkv_proj", config.q_size, config.q_size + kv)
    assert rows["layers.1.v_proj"] == ("layers.1.qkv_proj", config.q_size + kv, config.q_size + 2 * kv)
    assert rows["layers.0.up_proj"].first == config.intermediate_size
    assert rows["layers.0.o_proj"] == ("layers.0.o_proj", 0, config.hidden_size)


def test_which_tensor_is_the_head() -> None:
    assert head_tensor({"embedding": 0, "norm": 1, "head": 2}) == "head"
    assert head_tensor(["embedding", "norm"]) == "embedding"
    assert block_tensors(["embedding", "layers.0.o_proj", "norm", "head"]) == ["layers.0.o_proj", "norm"]
