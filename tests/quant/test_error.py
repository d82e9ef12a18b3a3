"""Scales chosen by error: never worse than plain rounding, exact on a grid, finite on anything finite."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ouro_edge.errors import CheckpointError
from ouro_edge.quant import ErrorMeter, Scheme, dequantize, quantize

EVERY = [Scheme(bits, size, symmetric) for bits in (4, 8) for size in (16, 128) for symmetric in (True, False)]
schemes = st.builds(Scheme, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64, 128, 256]), st.booleans())


def plain(values: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float64]:
    """Round to nearest on the grid that ends at each block's extreme, in float64; whole blocks only."""
    blocks = values.astype(np.float64).reshape(-1, scheme.block_size)
    top = 2**scheme.bits - 1
    if scheme.symmetric:
        half = top // 2
        step = np.abs(blocks).max(axis=1, keepdims=True) / half
        step[step == 0] = 1
        return (np.clip(np.rint(blocks / step), -half - 1, half) * step).reshape(values.shape)
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    step = ((high - low) / top)[:, None]
    step[step == 0] = 1
    zero = np.rint(-low[:, None] / step)
    return ((np.clip(np.rint(blocks / step) + zero, 0, top) - zero) * step).reshape(values.shape)


def squared(values: NDArray[np.float32], restored: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Squared error of each block."""
    return np.square(values.astype(np.float64) - restored).reshape(-1, size).sum(axis=1)


@settings(max_examples=150, deadline=None)
@given(
    schemes,
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "cauchy", "uniform", "few"]),
    st.floats(-3, 3),
    st.integers(-60, 60),
)
@example(Scheme(4, 16, False), 0, "few", 2.2585508861322836e-35, -8)  # blocks whose best scale would be subnormal
def test_never_worse_than_plain_rounding(scheme: Scheme, seed: int, kind: str, shift: float, power: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (3, 2 * scheme.block_size)
    draw = {
        "normal": lambda: generator.normal(size=shape),
        "cauchy": lambda: generator.standard_cauchy(shape),
        "uniform": lambda: generator.uniform(-1, 1, shape),
        "few": lambda: generator.normal(size=shape) * (generator.random(shape) < 0.1),
    }[kind]
    values = ((draw() + shift) * 2.0**power).astype(np.float32)
    mine = squared(values, dequantize(quantize(values, scheme)), scheme.block_size)
    theirs = squared(values, plain(values, scheme), scheme.block_size)
    noise = 1e-12 * np.square(values.astype(np.float64)).reshape(-1, scheme.block_size).sum(axis=1)
    # A scale may not be subnormal (see BlockSearch): half a step of the smallest scale is the most that this costs.
    smallest_step = scheme.block_size * (2.0**-126 / 2) ** 2 * (1 + 1e-4)
    assert ((mine <= theirs * (1 + 1e-4) + noise) | (mine <= smallest_step)).all()


@pytest.mark.parametrize(("scheme", "gain"), [(Scheme(4, 32), 1.4), (Scheme(4, 128), 1.5), (Scheme(8, 32), 0.6)])
def test_gain_over_plain_rounding_on_gaussian_weights(scheme: Scheme, gain: float) -> None:
    values = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    ours, theirs = ErrorMeter(), ErrorMeter()
    ours.add(values, dequantize(quantize(values, scheme)))
    theirs.add(values, plain(values, scheme))
    assert ours.result().snr_db > theirs.result().snr_db + gain


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_not_worse_than_gguf_and_exact_on_its_values(kind: str) -> None:
    scheme = Scheme(4 if kind == "Q4_0" else 8, 32)
    format_ = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(3).standard_t(5, (64, 1024)).astype(np.float32)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, format_), format_)
    mine = dequantize(quantize(values, scheme))
    assert squared(values, mine, 1024).sum() < squared(values, theirs, 1024).sum()
    np.testing.assert_array_equal(dequantize(quantize(theirs, scheme)), theirs)


@settings(max_examples=60, deadline=None)
@given(schemes, st.integers(0, 2**32 - 1))
def test_values_on_a_grid_come_back(scheme: Scheme, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size, top = scheme.block_size, 2**scheme.bits - 1
    shape = (4, 3, size)
    zero = np.full((*shape[:2], 1), 2 ** (scheme.bits - 1))
    codes = generator.integers(0, top + 1, shape)
    codes[..., 0] = 0
    if not scheme.symmetric:
        zero = generator.integers(0, top + 1, (*shape[:2], 1))
        codes[..., 1] = top
    scales = (generator.choice([-1, 1], zero.shape) * 2.0 ** generator.uniform(-8, 8, zero.shape)).astype(np.float32)
    if not scheme.symmetric:
        scales = np.abs(scales)
    values = ((codes - zero).astype(np.float32) * scales).reshape(4, -1)
    np.testing.assert_allclose(dequantize(quantize(values, scheme)), values, rtol=3e-7)


BLOCKS = {
    "zeros": [0.0],
    "negative zeros": [-0.0, 0.0],
    "constant": [0.37],
    "negative constant": [-0.37],
    "one sided": [1.0, 2.0, 3.0],
    "symmetric pair": [-1.0, 1.0],
    "smallest subnormal": [1e-45, 0.0],
    "subnormals": [1e-40, -3e-41],
    "smallest normal": [1.1754944e-38, -1.1754944e-38],
    "tiny": [1e-37, -2e-37],
    "huge": [1e30, -3e29],
    "largest": [3.4028235e38, -3.4028235e38],
    "largest positive": [3.4028235e38, 1.0],
    "huge and tiny": [1e30, 1e-30, 1e-45],
    "spike": [1e4] + [1e-3] * 15,
}


@pytest.mark.parametrize("scheme", EVERY, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_edge_blocks(name: str, scheme: Scheme) -> None:
    values = np.resize(np.float32(BLOCKS[name]), (1, scheme.block_size))
    with np.errstate(all="raise", under="ignore"):
        tensor = quantize(values, scheme, threads=1)
        restored = dequantize(tensor)
    assert np.isfinite(tensor.scales).all() and np.isfinite(restored).all()
    assert (np.abs(tensor.scales) >= np.finfo(np.float32).smallest_normal).all()
    exact = values.astype(np.float64)
    theirs = np.linalg.norm(plain(values, scheme) - exact)
    if name.startswith("largest"):  # no code may restore to infinity, so scales end early
        theirs = np.linalg.norm(exact) * (0.15 if scheme.symmetric else 0.6)
    # Half of the smallest step for each value is what a scale that must not be subnormal costs.
    most = 1.01 * theirs + 2.0**-127 * values.size**0.5 + 1e-7 * np.linalg.norm(exact)
    assert np.linalg.norm(restored - exact) <= most


@pytest.mark.parametrize("scheme", EVERY, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.37, -1e30, 2.5e-20])
def test_constant_blocks_are_exact(value: float, scheme: Scheme) -> None:
    values = np.full((2, scheme.block_size + 3), value, np.float32)
    np.testing.assert_allclose(dequantize(quantize(values, scheme)), values, rtol=1.3e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 2])
def test_refuses_values_that_are_not_finite(bad: float, threads: int) -> None:
    values = np.ones((700, 300), np.float32)
    values[650, 299] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(values, Scheme(4, 32), threads=threads)


def searched(values: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float64]:
    """Squared error of each block on the best of 150 refitted grids, in float64."""
    blocks = values.astype(np.float64).reshape(-1, scheme.block_size)
    top = 2**scheme.bits - 1
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    middle = np.full(low.shape, top // 2 + 1.0)
    if scheme.symmetric:
        flip = high > -low
        blocks = np.where(flip[:, None], -blocks, blocks)
        span, whole = np.maximum(high, -low), top // 2 + 1
    else:
        span, whole = high - low, top
    best = np.full(low.shape, np.inf)
    for steps in np.linspace(0.8 * whole, 1.9 * whole, 150) if scheme.bits == 4 else np.arange(-3, 3, 0.04) + whole:
        zero = middle if scheme.symmetric else np.rint(-low / span * min(steps, top))
        levels = np.clip(np.rint(blocks * (steps / span)[:, None]), -zero[:, None], top - zero[:, None])
        scale = (blocks * levels).sum(axis=1) / np.square(levels).sum(axis=1)
        best = np.minimum(best, np.square(blocks - levels * scale[:, None]).sum(axis=1))
    return best


@pytest.mark.parametrize(
    ("scheme", "loss"),
    [(Scheme(4, 32), 0.033), (Scheme(4, 128), 0.04), (Scheme(4, 32, False), 0.02), (Scheme(4, 128, False), 0.017),
     (Scheme(8, 128), 0.09), (Scheme(8, 128, False), 0.07)],
    ids=str,
)  # fmt: skip
def test_a_handful_of_grids_loses_little_against_many(scheme: Scheme, loss: float) -> None:
    values = np.random.default_rng(5).standard_normal((32, 2048)).astype(np.float32)
    mine = squared(values, dequantize(quantize(values, scheme)), scheme.block_size).sum()
    lost = 10 * np.log10(mine / searched(values, scheme).sum())
    assert lost < loss


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_no_code_restores_to_infinity(scheme: Scheme) -> None:
    generator = np.random.default_rng(6)
    values = generator.uniform(-1, 1, (64, scheme.block_size)) * np.finfo(np.float32).max
    values[:, 0] = np.finfo(np.float32).max * generator.choice([-1, 1], 64)
    tensor = quantize(values.astype(np.float32), scheme)
    reach = 2 ** (scheme.bits - 1) if scheme.symmetric else 2**scheme.bits - 1
    assert (np.abs(tensor.scales.astype(np.float64)) * reach <= np.finfo(np.float32).max).all()
    assert np.isfinite(dequantize(tensor)).all()
