"""The quantised KV cache: close to the float one, lawful, calibrated, and refused when it cannot be right."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from models import GOLDEN
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.kv_ranges import RANGES_FILE, RECORD_FILE, read_ranges, write_ranges
from ouro_edge.errors import BundleError, ContextOverflowError, RequestError
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.runtime.backend.kv import kv_bytes_per_token, scales_of
from ouro_edge.runtime.backend.onnx_cache import OnnxCache
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth

PROMPT = np.random.default_rng(1).integers(3, 96, 80).tolist()


@pytest.fixture(scope="module")
def bundle(checkpoint_of, bundle_of, tmp_path_factory):
    """A calibrated float32 model, so that what differs is the cache alone."""
    path = bundle_of(checkpoint_of(max_position_embeddings=8192))
    path = shutil.copytree(path, tmp_path_factory.mktemp("kv") / "model")
    calibrate(open_bundle(path))
    return path


def divergence(a, b):
    """KL [T] of softmax(a) from softmax(b) in nats, and how often both prefer the same token."""
    p, q = (x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True) for x in (
        a.astype(np.float64), b.astype(np.float64)))  # fmt: skip
    return (np.exp(p) * (p - q)).sum(1), float((a.argmax(1) == b.argmax(1)).mean())


@pytest.mark.parametrize(("kv", "most", "agree"), [("int8", 0.01, 0.95), ("int4", 0.7, 0.5)])
def test_a_quantised_cache_is_close_to_float(bundle, kv, most, agree):
    with ouro_edge.load(bundle, kv="fp32") as exact, ouro_edge.load(bundle, kv=kv) as model:
        assert model.kv == kv
        for depth in (1, 4):
            found = model.forward(PROMPT, exit=FixedDepth(depth)).logits
            kl, same = divergence(exact.forward(PROMPT, exit=FixedDepth(depth)).logits, found)
            assert 0 < kl.mean() < most
            assert same > agree


def test_int8_stays_close_at_long_positions(bundle):
    """Keys are rotated before they are stored: without a scale per rotary pair distant positions would blow up."""
    ids = np.random.default_rng(2).integers(3, 96, 4200).tolist()
    with ouro_edge.load(bundle, kv="fp32") as exact, ouro_edge.load(bundle, kv="int8") as model:
        wanted, found = (m.forward(ids, exit=FixedDepth(1)).logits for m in (exact, model))
    kl, _ = divergence(wanted[-200:], found[-200:])
    early, _ = divergence(wanted[:200], found[:200])
    assert kl.mean() < max(0.005, 3 * early.mean())


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_laws_hold_with_a_quantised_cache(bundle, kv):
    with ouro_edge.load(bundle, kv=kv) as model:
        at_once, single = model.new_sequence(), model.new_sequence()
        at_once.append(PROMPT)
        for token in PROMPT:
            single.append([token])
            last = single.run_until_exit(FullDepth())
        np.testing.assert_allclose(at_once.run_until_exit(FullDepth()).hidden, last.hidden, atol=0.05)
        single.truncate(40)
        single.append(PROMPT[40:])
        np.testing.assert_allclose(single.run_until_exit(FullDepth()).hidden, last.hidden, atol=0.05)
        out = model.forward(PROMPT, exit=ExitThreshold(0.5))
        full = [model.forward(PROMPT, exit=FixedDepth(d)).logits for d in range(1, 5)]
        for position, depth in enumerate(out.depth):
            np.testing.assert_allclose(out.logits[position], full[depth - 1][position], atol=0.05)


def test_memory_shrinks_with_the_type(bundle):
    sizes = {}
    for kv in ("fp32", "int8", "int4"):
        with ouro_edge.load(bundle, kv=kv) as model:
            sequence = model.new_sequence()
            sequence.append(PROMPT)
            sequence.run_until_exit(FullDepth())
            sizes[kv] = sequence.kv_bytes
            assert sequence.kv_bytes % kv_bytes_per_token(model.config, kv) == 0
    assert sizes["fp32"] == 4 * sizes["int8"] == 8 * sizes["int4"]


def test_eight_bits_hold_the_first_token_of_a_conversation_exactly(checkpoint_of, bundle_of, tmp_path):
    """Its keys and values draw much of all attention, so their rounding would be in every token's output."""
    path = shutil.copytree(bundle_of(add_tokenizer(checkpoint_of(vocab_size=300, seed=5))), tmp_path / "model")
    calibrate(open_bundle(path))
    with ouro_edge.load(path, kv="fp32") as exact, ouro_edge.load(path, kv="int8") as model:
        opening = model.tokenizer.encode(model.render([{"role": "user", "content": "Hello"}]))[:1]
        caches = []
        for m in (exact, model):
            sequence = m.new_sequence()
            sequence.append(opening)
            sequence.run_until_exit(FullDepth())
            caches.append([np.stack(sequence.kv_of(loop).valid(1)) for loop in range(1, 5)])
    ranges = read_ranges(open_bundle(path))
    rest = []
    for loop in range(4):
        steps = scales_of(ranges[loop], "int8").reshape(caches[1][loop].shape)  # [2 * L, KV, 1, D]
        held, wanted = caches[1][loop] * steps, caches[0][loop]
        large = np.abs(wanted) >= steps
        rest.append(large.mean())
        tolerance = steps * (0.02 if loop == 0 else 0.6)  # deeper loops start from a state that was rounded on the way
        assert (np.abs(held - wanted)[large] <= tolerance[large]).all()
    assert np.mean(rest) > 0.5


def test_calibration_is_repeatable_and_covers_both_halves_of_a_pair(bundle):
    before = read_ranges(open_bundle(bundle))
    assert calibrate(open_bundle(bundle)) == 640
    after = read_ranges(open_bundle(bundle))
    np.testing.assert_array_equal(before, after)
    first, second = np.split(after[:, :, 0], 2, axis=-1)
    np.testing.assert_array_equal(first, second)
    assert (after > 0).all()


def test_without_calibration_a_quantised_cache_is_refused(bundle_of):
    with pytest.raises(BundleError, match=r"not calibrated.*ouro-edge calibrate"):
        ouro_edge.load(bundle_of(), kv="int4")
    assert ouro_edge.load(bundle_of(), kv="auto").kv == "fp32"
    with pytest.raises(RequestError, match="int3"):
        ouro_edge.load(bundle_of(), kv="int3")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: (path / RANGES_FILE).write_bytes((path / RANGES_FILE).read_bytes()[:-4]), "checksum"),
        (lambda path: (path / RANGES_FILE).unlink(), "cannot be used"),
        (lambda path: edit(path, fitted_on="0" * 64), "other weights"),
        (lambda path: edit(path, version=9), "another version"),
        (lambda path: (path / RECORD_FILE).write_text("{"), "JSON"),
    ],
)
def test_damaged_ranges_are_refused(bundle, tmp_path, damage, says):
    path = shutil.copytree(bundle, tmp_path / "model")
    damage(path)
    with pytest.raises(BundleError, match=says):
        ouro_edge.load(path, kv="int8")


def edit(path, **changes):
    record = json.loads((path / RECORD_FILE).read_text())
    (path / RECORD_FILE).write_text(json.dumps(record | changes))


@pytest.mark.parametrize("make", [lambda r: r[:, :1], lambda r: r * np.nan, lambda r: -r])
def test_ranges_that_make_no_sense_are_not_stored(bundle, make):
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match="ranges"):
        write_ranges(opened, make(read_ranges(opened)), {})
    assert ouro_edge.load(bundle, kv="int8").kv == "int8"


def test_auto_takes_int8_when_float_would_fill_the_memory(bundle, monkeypatch):
    monkeypatch.setattr("ouro_edge.runtime.backend.kv_choice.available_memory", lambda: 10_000_000)
    model = ouro_edge.load(bundle)
    assert model.kv == "int8" and "4096 tokens would need" in model.kv_reason
    assert ouro_edge.load(bundle, context=64).kv == "fp32"


def test_a_cache_grows_by_less_when_memory_is_short(bundle, monkeypatch):
    with ouro_edge.load(bundle, kv="fp32") as model:
        sequence = model.new_sequence()
        sequence.append([5] * 256)
        sequence.advance(1)
        loop = sequence.kv_of(1)
        assert isinstance(loop, OnnxCache)
        full = loop.capacity
        per_token = loop.nbytes // full
        monkeypatch.setattr("ouro_edge.runtime.backend.kv.available_memory", lambda: (64 << 20) + 70 * per_token)
        sequence.append([5] * (full + 1 - 256))
        sequence.advance(1)
        assert full + 1 <= loop.capacity <= full + 70


def test_no_memory_is_one_line_and_leaves_the_sequence_usable(bundle, monkeypatch):
    with ouro_edge.load(bundle, kv="fp32") as model:
        sequence = model.new_sequence()
        monkeypatch.setattr("ouro_edge.runtime.backend.kv.available_memory", lambda: 64 << 20)
        sequence.append(PROMPT)
        with pytest.raises(ContextOverflowError, match=r"GB are free: use --kv int8"):
            sequence.run_until_exit(FullDepth())
        monkeypatch.undo()
        assert sequence.run_until_exit(FullDepth()).loop == 4


def test_a_smaller_context(bundle_of):
    with ouro_edge.load(bundle_of(GOLDEN), context=8) as model:
        with pytest.raises(ContextOverflowError, match="context is 8"):
            model.generate([1] * 9)
        *tokens, _ = model.generate([1] * 6, stop_ids=())
        assert len(tokens) == 3
    for wrong, says in ((513, "1 to 512"), (0, "at least 1"), (True, "a whole number"), ("x", "a whole number")):
        with pytest.raises(RequestError, match=says):
            ouro_edge.load(bundle_of(GOLDEN), context=wrong)
