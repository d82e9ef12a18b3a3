"""K-quants, Q5 and IQ4 keep every level in MatMulNBits' form; F16 and BF16 run in float32, or in 8 bits if asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from gguf_files import Q, small_llama, write_gguf
from models import write_checkpoint

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.weights import tensor_shapes
from ouro_edge.cli import main
from ouro_edge.errors import RequestError
from ouro_edge.export.gguf.blocks.coded import CODINGS, convert
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.gguf.graph_arrays import exact_by_default, float_bytes
from ouro_edge.export.open_checkpoint import open_checkpoint

# Positions of the float16 numbers in a stored block: the scale, and the scale of the minima if there is one.
HALVES = {
    Q.Q5_0: (0,), Q.IQ4_NL: (0,), Q.IQ4_XS: (0,), Q.Q5_1: (0, 2), Q.Q5_K: (0, 2), Q.Q4_K: (0, 2), Q.Q6_K: (208,),
    Q.Q3_K: (108,), Q.Q2_K: (80, 82),
}  # fmt: skip
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # its table of levels
LEVELS = {
    Q.Q5_0: set(range(112, 144)), Q.IQ4_NL: {128 + level for level in IQ4}, Q.IQ4_XS: {128 + level for level in IQ4},
    Q.Q5_1: set(range(112, 144)), Q.Q5_K: set(range(112, 144)), Q.Q4_K: set(range(16)), Q.Q6_K: set(range(96, 160)),
    Q.Q3_K: set(range(4, 12)), Q.Q2_K: set(range(6, 10)),
}  # fmt: skip
PROMPT = list(range(3, 33))


def random_rows(kind: Q, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Stored rows of random levels and scales, whose values have about the variance 1 / columns."""
    size, nbytes = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, columns // size, nbytes), np.uint8)

    def set_halves(factor: float) -> None:
        for at, sign in zip(HALVES[kind], (1.0, -0.6), strict=False):
            signed = -sign if kind in (Q.Q4_K, Q.Q5_K, Q.Q2_K) and at != HALVES[kind][0] else sign
            raw[..., at : at + 2] = np.full(1, factor * signed, "<f2").view(np.uint8)

    set_halves(1)
    set_halves(columns**-0.5 / dequantize(raw.reshape(rows, -1), kind).std())
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", CODINGS, ids=lambda k: k.name)
def test_no_level_is_rounded(kind):
    raw = random_rows(kind, 40, 512)
    values = dequantize(raw, kind)
    codes, scales, offsets = convert(kind, raw)
    found = (codes.astype(np.float32) - 2 ** (CODINGS[kind].bits - 1)) * scales[:, :, None]
    if offsets is None:
        np.testing.assert_array_equal(found.reshape(values.shape), values)
    else:
        found += offsets[:, :, None]
        np.testing.assert_allclose(found.reshape(values.shape), values, rtol=0, atol=3e-7 * np.abs(values).max())
    assert set(np.unique(codes[scales != 0])) == LEVELS[kind]


def test_blocks_of_zeros_and_damaged_scales():
    for kind in CODINGS:
        raw = random_rows(kind, 2, 256)
        raw[0] = 0
        raw.reshape(2, -1, GGML_QUANT_SIZES[kind][1])[1, 0, HALVES[kind][0] : HALVES[kind][0] + 2] = (0, 0x7E)  # NaN
        with np.errstate(all="ignore"):
            _, scales, offsets = convert(kind, raw)
        assert not scales[0].any() and (offsets is None or not offsets[0].any())
        assert not np.isfinite(scales[1]).all()


def model_of(path: Path, kind: Q) -> Path:
    """A model whose matrices are of this type."""
    config, _ = small_llama()
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    config = type(config)(**{**{f: getattr(config, f) for f in config.__dataclass_fields__}, **changes})
    random = np.random.default_rng(3)
    weights = {
        name: random.uniform(0.5, 1.5, shape).astype(np.float32)
        if len(shape) == 1
        else random.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
        for name, shape in tensor_shapes(config).items()
    }

    def stored(values: np.ndarray, type_: Q) -> np.ndarray:
        return random_rows(type_, *values.shape) if type_ in CODINGS else quantize(values, type_)

    return write_gguf(path, config, weights, kind, quantize=stored)


@pytest.mark.parametrize("kind", [*CODINGS, Q.F16, Q.BF16], ids=lambda k: k.name)
def test_logits_are_those_of_the_stored_weights(tmp_path, kind):
    path = model_of(tmp_path / "x.gguf", kind)
    stored = dict(open_checkpoint(path).weights)
    config = open_checkpoint(path).config
    hidden = reference.run(config, stored, np.array(PROMPT)).hidden[-1]
    expected = reference.head({"head": stored["embedding"]}, hidden)
    assert not [line for line in open_gguf_bundle(path).notes if "run as" in line]
    with ouro_edge.load(path) as model:
        found = model.forward(PROMPT).logits
    close = 1e-4 if kind in (Q.F16, Q.BF16) else 0.05  # else activations are rounded to eight bits
    assert np.linalg.norm(found - expected) <= close * np.linalg.norm(expected)


def test_the_user_chooses_between_exact_and_int8(tmp_path):
    path = model_of(tmp_path / "x.gguf", Q.F16)
    with ouro_edge.load(path, gguf_weights="exact") as model:
        exact = model.forward(PROMPT).logits
    with ouro_edge.load(path, gguf_weights="int8") as model:
        rounded = model.forward(PROMPT).logits
    assert 1e-3 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.05
    run = ["run", str(path), "--ids", "3 4 5", "-n", "1", "--gguf-weights"]
    told = CliRunner().invoke(main, [*run, "int8"])
    assert told.exit_code == 0 and told.stderr.count("15 F16 tensors run as Q8_0, off by at most 0.4%") == 1
    silent = CliRunner().invoke(main, [*run, "exact"])
    assert silent.exit_code == 0 and "Q8_0" not in silent.stderr
    exported = tmp_path / "bundle"
    ouro_edge.export(write_checkpoint(tmp_path / "source"), exported, calibration=None)
    with pytest.raises(RequestError, match="gguf_weights is for a GGUF file only"):
        ouro_edge.load(exported, gguf_weights="int8")


def test_the_default_depends_on_size_and_free_memory(tmp_path):
    weights = open_checkpoint(model_of(tmp_path / "x.gguf", Q.F16)).weights
    size = sum(4 * values.size for name, values in weights.items() if values.ndim == 2)
    assert float_bytes(weights) == size
    assert exact_by_default(weights, 4 * size) and not exact_by_default(weights, 4 * size - 1)


def test_little_memory_means_eight_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("ouro_edge.export.gguf.gguf_bundle.available_memory", lambda: 0)
    (note,) = [line for line in open_gguf_bundle(model_of(tmp_path / "x.gguf", Q.BF16)).notes if "run as" in line]
    assert note.startswith("15 BF16 tensors run as Q8_0, off by at most 0.4%")
