"""Scaled rotary positions against the frequencies and logits that transformers computed for a tiny Llama."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from models import GOLDEN, hf_config, oracle, write_checkpoint

import ouro_edge
from ouro_edge.arch.config import ModelConfig, from_hf
from ouro_edge.arch.reference import rope_tables
from ouro_edge.arch.rope import attention_factor, frequency_divisors, inverse_frequencies
from ouro_edge.arch.to_hf import to_hf
from ouro_edge.errors import ConfigError

# Made with transformers 4.57.6 and torch 2.13.0: models.hf_config(model_type="llama"), hf_tensors(config, seed=3).
EXPECTED: dict[str, Any] = json.loads((GOLDEN.parent / "rope.json").read_text())
CASES: dict[str, Any] = EXPECTED["cases"]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}  # fmt: skip


def llama(**changes: Any) -> ModelConfig:
    return from_hf(hf_config(model_type="llama", **changes))


@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case: str) -> None:
    config = llama(rope_scaling=CASES[case]["rope_scaling"])
    found = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    np.testing.assert_allclose(found, np.array(CASES[case]["frequencies"], np.float32), rtol=2e-7)
    assert math.isclose(attention_factor(config.rope_scaling), CASES[case]["attention_factor"], rel_tol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Any) -> None:
    path = write_checkpoint(tmp_path / "m", seed=3, model_type="llama", rope_scaling=CASES[case]["rope_scaling"])
    logits, _ = oracle(path, EXPECTED["ids"])
    np.testing.assert_allclose(logits[0, -1], CASES[case]["logits"], atol=2e-4)
    bundle = ouro_edge.export(path, tmp_path / "b", precision="fp32", calibration=None).path
    with ouro_edge.load(bundle, threads=1) as model:
        assert model.config == from_hf(json.loads((path / "config.json").read_text()))
        np.testing.assert_allclose(model.forward(EXPECTED["ids"]).logits[-1], CASES[case]["logits"], atol=1e-3)


def test_tables_of_the_largest_positions() -> None:
    """Frequencies are rounded to float32 as in the published code, also where angles are large."""
    config = llama(rope_scaling=CASES["yarn"]["rope_scaling"])
    cos, sin = rope_tables(config, 500)
    angle = np.float32(499) * np.float32(CASES["yarn"]["frequencies"][1])
    factor = CASES["yarn"]["attention_factor"]
    np.testing.assert_allclose([cos[499, 1], sin[499, 1]], [factor * np.cos(angle), factor * np.sin(angle)], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_round_trips(case: str) -> None:
    config = llama(rope_scaling=CASES[case]["rope_scaling"])
    assert config.rope_scaling is not None
    assert from_hf(to_hf(config)) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_manifests_of_earlier_versions_have_no_scaling() -> None:
    config = llama()
    assert "rope_scaling" not in config.to_dict()
    assert ModelConfig.from_dict(config.to_dict()).rope_scaling is None


def test_transformers_5_stores_all_in_one_field() -> None:
    data = {name: value for name, value in hf_config(model_type="llama").items() if name != "rope_theta"}
    found = from_hf({**data, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert found == llama(rope_theta=5e5, rope_scaling=LLAMA3)
    assert from_hf({**data, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "type": "llama3"}}).rope_scaling
    with pytest.raises(ConfigError, match="rope_theta = 7 and 5 in rope_parameters"):
        from_hf({**data, "rope_theta": 7, "rope_parameters": {"rope_type": "default", "rope_theta": 5}})
    with pytest.raises(ConfigError, match="rope_parameters and rope_scaling that differ"):
        from_hf({**data, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "factor": 4.0}})


def test_every_family_takes_a_scaling() -> None:
    assert from_hf(hf_config(rope_scaling=LLAMA3)).rope_scaling == llama(rope_scaling=LLAMA3).rope_scaling


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "only rope_type linear, llama3 or yarn is implemented"),
        ({"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.0, "short_factor": [1.0] * 8,
          "long_factor": [2.0] * 8}, "longrope is implemented only where short_factor and long_factor are equal"),
        ({"type": "su", "short_factor": [1.0], "long_factor": [1.0]}, "only rope_type linear"),
        ({"type": "mrope", "mrope_section": [2, 3, 3]}, "only rope_type linear"),
        ({"type": "linear", "rope_type": "yarn", "factor": 2.0}, "only one rope_type is implemented"),
        ({"type": 5, "factor": 2.0}, "only one rope_type is implemented"),
        ({"type": ["yarn"], "factor": 2.0}, "only one rope_type is implemented"),
        ({"type": "yarn"}, "of type 'yarn' without factor"),
        ({"type": "llama3", "factor": 8.0}, "without low_freq_factor, high_freq_factor, original_max_position"),
        ({**LLAMA3, "beta_fast": 3}, "a llama3 scaling without beta_fast"),
        ({**LLAMA3, "factor": -8.0}, "factor of rope scaling is -8.0; expected a positive number"),
        ({**LLAMA3, "factor": "8"}, "factor of rope scaling is '8'"),
        ({**LLAMA3, "factor": float("nan")}, "factor of rope scaling is nan"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor of rope scaling is 1.0"),
        ({**LLAMA3, "original_max_position_embeddings": 1e3}, "original_positions of rope scaling is 1000.0"),
        ({"type": "yarn", "factor": 4.0, "attention_factor": 0.0}, "attention_factor of rope scaling is 0.0"),
        ({"type": "yarn", "factor": 4.0, "mscale": "1", "mscale_all_dim": 1}, "mscale and mscale_all_dim"),
        ({"type": "yarn", "factor": 4.0, "truncate": 1}, "truncate of rope scaling is 1"),
        ({"type": "yarn", "factor": 4.0, "attn_factor": 2}, "only attn_factor 1 is implemented"),
        ({"rope_type": "longrope", "attention_factor": 1.0, "short_factor": [1.0], "long_factor": [1.0]},
         "rope scaling has 1 factors; expected 8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_what_is_refused_is_named(rope: Any, message: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        llama(**{field: rope})
    assert message in str(caught.value)


def test_yarn_needs_a_base_above_one() -> None:
    with pytest.raises(ConfigError, match=r"rope_theta is 1\.0; a yarn scaling needs more than 1"):
        llama(rope_theta=1.0, rope_scaling={"type": "yarn", "factor": 2.0})


@pytest.mark.parametrize("value", [5, {"type": "linear", "colour": 1}, {}, {"type": "factors", "factors": "abc"}])
def test_a_damaged_manifest_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match="rope"):
        ModelConfig.from_dict({**llama().to_dict(), "rope_scaling": value})


@pytest.mark.parametrize("case", CASES)
def test_divisors_give_the_same_frequencies(case: str) -> None:
    config = llama(rope_scaling=CASES[case]["rope_scaling"])
    assert config.rope_scaling is not None
    divisors = frequency_divisors(config.rope_theta, config.head_dim, config.rope_scaling)
    scaled = inverse_frequencies(config.rope_theta, config.head_dim) / divisors
    np.testing.assert_allclose(scaled, CASES[case]["frequencies"], rtol=3e-7)
