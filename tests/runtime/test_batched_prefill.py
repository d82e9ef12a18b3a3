"""The prefill copy in shared calls: the same states as in calls of its own, from a measured number of rows on."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.prefill_weights import prefill_copy_for
from ouro_edge.runtime.backend import onnx_backend
from ouro_edge.runtime.backend.batching.crossover import crossover
from ouro_edge.runtime.backend.onnx_cache import OnnxCache
from ouro_edge.runtime.exits.policies import FixedDepth
from ouro_edge.system import huge_pages

RNG = np.random.default_rng(6)
PROMPTS = [[int(i) for i in RNG.integers(3, 96, n)] for n in (7, 1, 12, 30, 5)]


@pytest.fixture(params=["fp32", "int8", "int4"])
def models(request, bundle_of, checkpoint_of, tmp_path, monkeypatch):
    """An int4 model whose copy serves every call: alone, and for eight generations at once."""
    import shutil

    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_backend, "crossover", lambda *_: 1)
    path = shutil.copytree(bundle_of(checkpoint_of(), "int4", block_size=16), tmp_path / "model")
    calibrate(path)
    settings = {"kv": request.param, "prefill_weights": "int8"}
    with ouro_edge.load(path, **settings) as alone, ouro_edge.load(path, parallel=8, **settings) as together:
        backend: Any = alone.backend
        backend._prefill["block"].min_rows = 1
        yield alone, together


def test_groups_in_one_call_equal_groups_one_by_one(models):
    alone, together = models
    expected, groups, sequences = [], [], []
    for number, prompt in enumerate(PROMPTS):
        for model in models:
            sequence = model.new_sequence()
            sequence.append(prompt)
            for loop in range(1, number % 3 + 1):
                sequence.advance(loop)
            group = sequence.pending(number % 3 + 1)
            if model is alone:
                (output,) = alone.backend.run([group])
                expected.append((output.states.copy(), output.gates.copy()))
            else:
                groups.append(group)
                sequences.append(sequence)
    for output, (states, gates) in zip(together.backend.run(groups), expected, strict=True):
        # Attention of a quantised cache is computed in two ways, which may round a state's codes differently.
        atol = 1e-4 if together.backend.kv == "fp32" else 0.1
        np.testing.assert_allclose(output.states, states, atol=atol)
        np.testing.assert_allclose(output.gates, gates, atol=atol)


@pytest.mark.parametrize("company", [1, 2, 3, 5, 7])
def test_a_prompt_and_other_groups_in_one_call_equal_each_without_the_other(models, company):
    """Over a quantised cache, a prompt has attention of its own, with one group up to all other slots beside it."""
    alone, together = models
    prompt = [int(i) for i in RNG.integers(3, 96, 60)]
    pairs = [model.new_sequence() for model in models]
    for sequence in pairs:
        sequence.append(prompt[:20])
        sequence.advance(1)
        sequence.append(prompt[20:])
    (expected,) = alone.backend.run([pairs[0].pending(1)])
    others = []
    for number in range(company):
        sequence = together.new_sequence()
        sequence.append(prompt[: 3 + 7 * number])
        sequence.advance(1)
        sequence.append(prompt[number : number + 1 + number % 2])
        others.append(sequence)
    groups = [sequence.pending(1) for sequence in others]
    without = together.backend.run(groups) if company > 1 else None
    place = company // 2
    found = together.backend.run([*groups[:place], pairs[1].pending(1), *groups[place:]])
    prompt_found = found.pop(place)
    # A last bit may round a code of the cache differently, which few rows see.
    assert np.median(np.abs(prompt_found.states - expected.states)) < 1e-4
    np.testing.assert_allclose(prompt_found.states, expected.states, atol=1e-4 if alone.backend.kv == "fp32" else 0.1)
    np.testing.assert_allclose(prompt_found.gates, expected.gates, atol=1e-4 if alone.backend.kv == "fp32" else 0.1)
    for output, before in zip(found, without or (), strict=bool(without)):
        np.testing.assert_allclose(output.states, before.states, atol=1e-4 if alone.backend.kv == "fp32" else 0.1)


def test_a_long_prompt_alone_equals_that_of_a_model_for_one(models):
    ids = RNG.integers(3, 96, 150).tolist()
    expected, found = (model.forward(ids, exit=FixedDepth(4)).logits for model in models)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rows_of_a_call_do_not_depend_on_the_company(models):
    _, together = models

    def first_of(prompts):
        sequences = [together.new_sequence() for _ in prompts]
        for sequence, prompt in zip(sequences, prompts, strict=True):
            sequence.append(prompt)
        return together.backend.run([sequence.pending(1) for sequence in sequences])[0].states

    other = [[int(i) for i in RNG.integers(3, 96, len(prompt))] for prompt in PROMPTS[1:]]
    np.testing.assert_array_equal(first_of(PROMPTS), first_of([PROMPTS[0], *other]))


@pytest.mark.parametrize(("faster_from", "found"), [(1, 6), (7, 8), (16, 16), (30, 32), (49, 64)])
def test_the_crossover_is_found_by_bisection_and_stored(tmp_path, faster_from, found):
    asked = []

    def seconds(rows):
        asked.append(rows)
        return float(rows), float(faster_from) - 0.5

    assert crossover(tmp_path, "this machine", seconds, 64) == found and 1 <= len(asked) <= 3
    asked.clear()
    assert crossover(tmp_path, "this machine", seconds, 64) == found and not asked
    assert crossover(tmp_path, "another", lambda rows: (0.0, 1.0), 64) == 64
    assert json.loads((tmp_path / "crossover.json").read_text()) == {"this machine": found, "another": 64}


def test_a_damaged_record_of_the_crossover_is_measured_again(tmp_path):
    for damaged in ("{", "[]", '{"m": 1000000}', '{"m": "8"}'):
        (tmp_path / "crossover.json").write_text(damaged)
        assert crossover(tmp_path, "m", lambda rows: (1.0, 0.0), 64) == 6


def test_the_crossover_is_measured_when_the_model_is_loaded(bundle_of, checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    path = bundle_of(checkpoint_of(), "int4", block_size=16)
    with ouro_edge.load(path, parallel=2, prefill_weights="int8") as model:
        copy = prefill_copy_for(open_bundle(path), "int8")
        (measured,) = json.loads((copy / "crossover.json").read_text()).values()
        backend: Any = model.backend
        rows = backend._prefill["block"].min_rows
        assert rows == measured and 6 <= rows <= 64
        assert backend.session_for(rows) is not backend.session_for(rows - 1)


def test_the_crossover_is_measured_on_weights_that_have_moved_to_huge_pages(
    bundle_of, checkpoint_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huge_pages, "MIN_WEIGHT_BYTES", 0)
    happened, time_call = [], OnnxCache.time

    def collapse(_):
        time.sleep(0.2)
        happened.append("moved")

    def timed(*args):
        happened.append("timed")
        return time_call(*args)

    monkeypatch.setattr(huge_pages, "collapse", collapse)
    monkeypatch.setattr(OnnxCache, "time", timed)
    with ouro_edge.load(bundle_of(checkpoint_of(), "int4", block_size=16), parallel=2, prefill_weights="int8"):
        assert happened[0] == "moved" and set(happened[1:]) == {"timed"}
