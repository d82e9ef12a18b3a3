"""Schemes, recipes and presets: the mapping of names, and strict reading."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import tensor_shapes
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.quant import PRESETS, Recipe, Scheme, preset

FOUR, SIX, EIGHT, NINE = Scheme(4, 32), Scheme(4, 64), Scheme(8, 128), Scheme(8, 16, False)
RECIPE = Recipe("mixed", attention=FOUR, feed_forward=SIX, head=EIGHT, embedding=NINE)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((3,), "bits is 3"),
        ((True,), "bits is True"),
        ((4.0,), "bits is 4.0"),
        ((4, 8), "block_size is 8"),
        ((4, 512), "block_size is 512"),
        ((4, 96), "block_size is 96"),
        ((4, "32"), "block_size is '32'"),
        ((8, 32, 1), "symmetric is 1"),
    ],
)
def test_scheme_refuses(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(RequestError, match=re.escape(named)):
        Scheme(*arguments)


@pytest.mark.parametrize(("width", "blocks"), [(1, 1), (32, 1), (33, 2), (576, 18)])
def test_last_block_may_be_part(width: int, blocks: int) -> None:
    assert Scheme(4, 32).blocks(width) == blocks


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *[(f"layers.0.{part}_proj", FOUR) for part in ("q", "k", "v", "o", "qkv")],
        *[(f"layers.23.{part}_proj", SIX) for part in ("gate", "up", "down", "gate_up")],
        *[(f"layers.7.{part}", None) for part in ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")],
        *[(name, None) for name in ("norm", "exit_gate.weight", "exit_gate.bias")],
        ("head", EIGHT),
        ("embedding", NINE),
    ],
)
def test_recipe_knows_every_tensor(name: str, scheme: Scheme | None) -> None:
    assert RECIPE.scheme_for(name) == scheme


@pytest.mark.parametrize("name", ["layers.0.w_proj", "layers.x.q_proj", "q_proj", "layers.0.q_proj.weight", ""])
def test_recipe_refuses_unknown_tensors(name: str) -> None:
    with pytest.raises(RequestError, match=re.escape(repr(name))):
        RECIPE.scheme_for(name)


def test_recipe_covers_a_whole_model() -> None:
    config = ModelConfig(
        model_type="ouro", vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, loops=4, max_positions=64, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=False, sandwich_norms=True, has_gate=True, exit_threshold=1.0, bos_token_id=1,
        eos_token_ids=(2,), pad_token_id=None,
    )  # fmt: skip
    matrices = {name for name in tensor_shapes(config) if RECIPE.scheme_for(name) is not None}
    wanted = {name for name, shape in tensor_shapes(config).items() if len(shape) == 2} - {"exit_gate.weight"}
    assert matrices == wanted


def test_presets() -> None:
    assert preset("int4") == Recipe("int4", Scheme(4, 128), Scheme(4, 128), Scheme(8, 128), Scheme(8, 128))
    assert preset("int8") == Recipe("int8", *[Scheme(8, 32, symmetric=False)] * 4)
    assert preset("fp32") == Recipe("fp32", None, None, None, None)
    four, eight = Scheme(4, 32, False), Scheme(8, 32, False)
    assert preset("int4", block_size=32, symmetric=False) == Recipe("int4", four, four, eight, eight)


def test_preset_refuses_unknown_names_and_lists_the_known() -> None:
    with pytest.raises(RequestError, match="int3.*" + ", ".join(PRESETS)):
        preset("int3")
    for size in (0, 100):
        with pytest.raises(RequestError, match=f"block_size is {size}"):
            preset("int4", block_size=size)


@pytest.mark.parametrize("options", [{"block_size": 32}, {"symmetric": True}, {"symmetric": False}])
def test_fp32_takes_no_options_of_blocks(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="fp32 has no blocks"):
        preset("fp32", **options)


@pytest.mark.parametrize("scheme", [FOUR, SIX, EIGHT, NINE])
def test_round_trip_through_json(scheme: Scheme) -> None:
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bits": None}, "lacks bits"),
        ({"symmetric": None}, "lacks symmetric"),
        ({"group": 3}, "unknown fields group"),
        ({"bits": 5}, "bits is 5"),
        ({"block_size": "x"}, "block_size is 'x'"),
    ],
)
def test_from_dict_is_strict(change: dict[str, Any], named: str) -> None:
    data = {key: value for key, value in {**FOUR.to_dict(), **change}.items() if value is not None}
    with pytest.raises(BundleError, match=named):
        Scheme.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "int4"])
def test_a_scheme_that_is_no_object_is_named(data: object) -> None:
    with pytest.raises(BundleError, match="expected a JSON object"):
        Scheme.from_dict(data)
