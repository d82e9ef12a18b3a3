"""Scaled rotary positions in GGUF files: read and written as llama.cpp computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_files import small_llama, write_gguf
from models import GOLDEN, write_checkpoint

import ouro_edge
from ouro_edge.arch.rope import RopeScaling, attention_factor, inverse_frequencies
from ouro_edge.errors import OuroEdgeError
from ouro_edge.export.gguf.reader import open_gguf

EXPECTED: dict[str, Any] = json.loads((GOLDEN.parent / "rope.json").read_text())
CASES: dict[str, Any] = EXPECTED["cases"]


def read(path: Path, keys: dict[str, Any], freqs: list[float] | None = None) -> RopeScaling | None:
    """The scaling of a file with these keys after llama.rope. and this rope_freqs.weight."""

    def meta(writer: GGUFWriter) -> None:
        for key, value in keys.items():
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(f"llama.rope.{key}", value)
        if freqs is not None:
            writer.add_tensor("rope_freqs.weight", np.array(freqs, np.float32))

    return open_gguf(write_gguf(path / "m.gguf", *small_llama(), meta=meta)).config.rope_scaling


YARN = RopeScaling(type="yarn", factor=4.0, original_positions=32, attention_factor=1.138629436111989)


@pytest.mark.parametrize(
    ("keys", "freqs", "expected"),
    [
        ({}, None, None),
        ({"scaling.factor": 0.0}, None, None),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None, None),
        ({"scaling.factor": 4.0}, None, RopeScaling(type="linear", factor=4.0)),
        ({"scale_linear": 4.0}, None, RopeScaling(type="linear", factor=4.0)),
        ({"scale_linear": 2.0, "scaling.factor": 4.0}, None, RopeScaling(type="linear", factor=4.0)),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32}, None, YARN),
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, None,
         RopeScaling(type="yarn", factor=4.0, original_positions=64, attention_factor=1.138629436111989)),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 2.0}, None,
         RopeScaling(type="yarn", factor=4.0, original_positions=64, attention_factor=2 * 1.138629436111989)),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_attn_factor": 1.5,
          "scaling.yarn_ext_factor": 1.0, "scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 2.0}, None,
         RopeScaling(type="yarn", factor=4.0, original_positions=64, beta_fast=16.0, beta_slow=2.0,
                     attention_factor=1.5)),
        ({}, [1.0, 1.0, 2.5, 8.0], RopeScaling(type="factors", factors=(1.0, 1.0, 2.5, 8.0))),
        ({"scaling.factor": 2.0, "scaling.attn_factor": 1.5}, [1.0, 1.0, 2.5, 8.0],
         RopeScaling(type="factors", factors=(2.0, 2.0, 5.0, 16.0), attention_factor=1.5)),
        ({"scaling.attn_factor": 1.2}, None, RopeScaling(type="factors", factors=(1.0,) * 4, attention_factor=1.2)),
    ],
)  # fmt: skip
def test_keys(tmp_path: Path, keys: dict[str, Any], freqs: list[float] | None, expected: RopeScaling | None) -> None:
    assert read(tmp_path, keys, freqs) == expected


@pytest.mark.parametrize(
    ("keys", "freqs", "message"),
    [
        ({"scaling.type": "yarn", "scaling.factor": 2.0}, [1.0] * 4, "'yarn' beside rope_freqs.weight"),
        ({}, [1.0] * 3, "rope scaling has 3 factors; expected 4"),
        ({}, [1.0, 0.0, 1.0, 1.0], "factors of rope scaling are not a list of positive numbers"),
        ({}, [1.0, float("nan"), 1.0, 1.0], "factors of rope scaling are not a list of positive numbers"),
        ({"scaling.type": "yarn", "scaling.original_context_length": 0, "scaling.factor": 2.0}, None,
         "original_positions of rope scaling is 0"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(tmp_path: Path, keys: dict[str, Any], freqs: Any, message: str) -> None:
    with pytest.raises(OuroEdgeError) as caught:
        read(tmp_path, keys, freqs)
    assert message in str(caught.value)


def test_a_matrix_of_divisors_is_refused(tmp_path: Path) -> None:
    def meta(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones((2, 2), np.float32))

    with pytest.raises(OuroEdgeError, match=r"rope_freqs.weight has shape \[2, 2\]"):
        open_gguf(write_gguf(tmp_path / "m.gguf", *small_llama(), meta=meta))


WRITTEN: dict[str, tuple[dict[str, Any], bool]] = {
    "linear": ({"type": "linear", "factor": 4.0}, False),
    "llama3": ({}, True),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_context_length": 128}, False),
    "yarn-length": ({"type": "yarn", "factor": 2.5, "original_context_length": 512}, False),
    "yarn-all": ({"attn_factor": 1.0730507}, True),  # llama.cpp ignores other bounds of the ramp: written as divisors
    "yarn-attention": ({"attn_factor": 1.3}, True),
    "longrope": ({"attn_factor": 1.1}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_written_files(tmp_path: Path, case: str) -> None:
    """A written file has llama.cpp's keys, and the frequencies and logits of the checkpoint."""
    checkpoint = write_checkpoint(tmp_path / "m", seed=3, model_type="llama", rope_scaling=CASES[case]["rope_scaling"])
    path = ouro_edge.export(checkpoint, tmp_path / "m.gguf", format="gguf", precision="fp32").path
    file = GGUFReader(path)
    prefix = "llama.rope.scaling."
    found = {name.removeprefix(prefix): field.contents() for name, field in file.fields.items()
             if name.startswith(prefix)}  # fmt: skip
    keys, divisors = WRITTEN[case]
    assert found == pytest.approx(keys)
    assert ("rope_freqs.weight" in [tensor.name for tensor in file.tensors]) == divisors
    config = open_gguf(path).config
    frequencies = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    np.testing.assert_allclose(frequencies, CASES[case]["frequencies"], rtol=3e-7)
    assert attention_factor(config.rope_scaling) == pytest.approx(CASES[case]["attention_factor"], rel=1e-7)
    with ouro_edge.load(path, threads=1) as model:
        np.testing.assert_allclose(model.forward(EXPECTED["ids"]).logits[-1], CASES[case]["logits"], atol=1e-3)
    again = ouro_edge.export(path, tmp_path / "b", precision="fp32", calibration=None).path
    with ouro_edge.load(again, threads=1) as model:
        assert model.config.rope_scaling == config.rope_scaling
        np.testing.assert_allclose(model.forward(EXPECTED["ids"]).logits[-1], CASES[case]["logits"], atol=1e-3)


def test_divisors_of_llama_3(tmp_path: Path) -> None:
    """The values that llama.cpp's converter computes: 1 for short waves, the factor for long ones, a mean between."""
    checkpoint = write_checkpoint(
        tmp_path / "m", model_type="llama", head_dim=64, num_attention_heads=1, num_key_value_heads=1, rope_theta=5e5,
        rope_scaling={"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192},
    )  # fmt: skip
    path = ouro_edge.export(checkpoint, tmp_path / "m.gguf", format="gguf", precision="fp32").path
    found = next(tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "rope_freqs.weight")
    wave = 2 * np.pi * 5e5 ** (np.arange(0, 64, 2) / 64)
    smooth = (8192 / wave - 1) / 3
    between = 1 / ((1 - smooth) / 32 + smooth)
    expected = np.where(wave < 2048, 1, np.where(wave > 8192, 32, between))
    assert ((expected > 1.001) & (expected < 31.9)).sum() >= 3
    np.testing.assert_allclose(found, expected, rtol=2e-6)
