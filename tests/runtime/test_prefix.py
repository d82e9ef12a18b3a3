"""Prefix-LM: a prompt that sees itself in both directions is one block, whatever is kept, split or shared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.errors import RequestError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.backend.reference_backend import ReferenceBackend
from ouro_edge.runtime.exits.policies import FullDepth
from ouro_edge.runtime.saved.prefix_cache import PrefixCache
from ouro_edge.runtime.saved.state_file import load_sequence, save_sequence

HRM = GOLDEN.parent / "hrm-tiny"
IDS = list(range(20, 44))
PREFIXES = (0, 5, 12, 22, 23, 24)  # also those that the two last positions, computed together, are part of


@pytest.fixture(scope="module")
def expected():
    with np.load(HRM / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return ouro_edge.export(HRM, tmp_path_factory.mktemp("prefix") / "hrm", precision="fp32").path


@pytest.fixture(scope="module", params=["onnx", "parallel", "gguf", "reference"])
def model(request, exported):
    if request.param == "reference":
        opened = open_checkpoint(HRM)
        yield ouro_edge.Model(ReferenceBackend(opened.config, dict(opened.weights)))
        return
    path = HRM / "hrm-tiny.gguf" if request.param == "gguf" else exported
    with ouro_edge.load(path, parallel=4 if request.param == "parallel" else 1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def onnx(exported):
    with ouro_edge.load(exported, kv="fp32") as loaded:
        yield loaded


def last_state(sequence: ouro_edge.TokenSequence) -> np.ndarray:
    return sequence.run_until_exit(FullDepth()).hidden[0].copy()


@pytest.mark.parametrize("row", [0, 1])
def test_golden(expected, model, row):
    ids = expected["input_ids"][row].tolist()
    for prefix, name in ((12, "prefix12"), (24, "prefix_all"), (0, "causal")):
        np.testing.assert_allclose(model.forward(ids, prefix=prefix).logits, expected[f"logits_{name}"][row], atol=1e-3)
    states = model.states(ids, prefix=12).hidden
    for step, wanted in enumerate(expected["pass_hidden_prefix12"][:, row]):
        np.testing.assert_allclose(np.split(states[step], 2, axis=1)[step % 4 != 3], wanted, atol=1e-3)
    *tokens, _ = model.generate(ids[:12], prefix=12, max_tokens=12, stop_ids=())
    assert [token.id for token in tokens] == expected["greedy_prefix12"][row].tolist()


def test_rows_per_call_do_not_split_a_prefix(model, monkeypatch):
    wanted = model.forward(IDS, prefix=17).logits
    monkeypatch.setattr(model.backend, "rows_per_call", 4)
    np.testing.assert_allclose(model.forward(IDS, prefix=17).logits, wanted, atol=1e-4)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(PREFIXES, PREFIXES)))
def test_nothing_is_reused_that_another_prefix_has_seen(onnx, before, after):
    """A sequence that held the same tokens, or more, with any prefix, gives what a new one does."""
    fresh = onnx.new_sequence()
    fresh.set_prompt(IDS, after)
    wanted = last_state(fresh)
    used = onnx.new_sequence()
    used.set_prompt([*IDS, 7, 8, 9], before)
    last_state(used)
    kept = used.set_prompt(IDS, after)
    assert kept == (22 if before == after <= 22 else 0)
    np.testing.assert_allclose(last_state(used), wanted, atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 20])
def test_a_sequence_that_is_cut_equals_one_that_was_never_longer(onnx, length):
    for cut in ("truncate", "copy_prefix"):
        sequence = onnx.new_sequence()
        sequence.set_prompt(IDS, 12)
        last_state(sequence)
        if cut == "truncate":
            sequence.truncate(length)
        else:
            sequence = sequence.copy_prefix(length)
        assert sequence.prefix == min(12, length)
        assert all(at in (0, length) for at in sequence.frontier)
        sequence.append([3])
        fresh = onnx.new_sequence()
        fresh.set_prompt([*IDS[:length], 3], min(12, length))
        np.testing.assert_allclose(last_state(sequence), last_state(fresh), atol=1e-5)


def test_a_saved_sequence_remembers_its_prefix(onnx, tmp_path):
    sequence = onnx.new_sequence()
    sequence.set_prompt(IDS, 12)
    last_state(sequence)
    save_sequence(sequence, tmp_path / "state")
    loaded = load_sequence(onnx, tmp_path / "state")
    assert loaded.prefix == 12 and loaded.set_prompt(IDS, 12) == 22
    assert load_sequence(onnx, tmp_path / "state").set_prompt(IDS) == 0
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content.replace(b'"prefix": 12', b'"prefix": 99'))
    with pytest.raises(RequestError, match="its prefix does not fit"):
        load_sequence(onnx, tmp_path / "state")


def test_the_prefix_cache_changes_no_answer(onnx):
    cache, wanted = PrefixCache(onnx, 1 << 30), {}
    prompts = [IDS, IDS[:20], [*IDS[:12], 5, 6], [*IDS, 4, 4, 4]]
    for ids, whole in itertools.product(prompts, (True, False)):
        wanted[tuple(ids), whole] = [t.id for t in list(onnx.generate(ids, prefix=len(ids) * whole, max_tokens=3))[:-1]]
    for ids, whole in itertools.product(prompts * 2, (True, False)):
        sequence = cache.checkout(ids)
        *tokens, _ = onnx.generate(ids, prefix=len(ids) * whole, max_tokens=3, sequence=sequence)
        assert [token.id for token in tokens] == wanted[tuple(ids), whole]
        cache.checkin(sequence)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_samples_of_one_prompt(model, prefix):
    *tokens, _ = model.generate(IDS, prefix=prefix, max_tokens=4, stop_ids=())
    found: dict[int, list[int]] = {}
    for index, event in model.generate_many([IDS], samples=3, prefix=prefix, max_tokens=4, stop_ids=()):
        if isinstance(event, ouro_edge.Token):
            found.setdefault(index, []).append(event.id)
    assert list(found.values()) == [[token.id for token in tokens]] * 3


def test_prompts_of_several_threads(exported):
    with ouro_edge.load(exported, parallel=4) as together, ouro_edge.load(exported) as alone:
        prompts = [IDS[i : i + 14] for i in range(6)]
        found: dict[int, list[int]] = {}
        for index, event in together.generate_many(prompts, prefix=10, max_tokens=5, stop_ids=()):
            if isinstance(event, ouro_edge.Token):
                found.setdefault(index, []).append(event.id)
        for i, prompt in enumerate(prompts):
            *tokens, _ = alone.generate(prompt, prefix=10, max_tokens=5, stop_ids=())
            assert found[i] == [token.id for token in tokens]


def test_a_prefix_is_refused_where_it_means_nothing(onnx, bundle_of):
    with pytest.raises(RequestError, match="prefix is 25; expected"):
        onnx.generate(IDS, prefix=25)
    with pytest.raises(RequestError, match="prefix is -1"):
        onnx.forward(IDS, prefix=-1)
    with ouro_edge.load(bundle_of()) as causal:
        assert causal.prefix_of([1, 2]) == 0
        with pytest.raises(RequestError, match="prefix is 2; this model's config does not say prefix_lm"):
            causal.generate([1, 2, 3], prefix=2)
        with pytest.raises(RequestError, match="does not say prefix_lm"):
            causal.states([1, 2, 3], prefix=1)


def test_the_prefill_copy_has_prefixes_too(exported, tmp_path, monkeypatch):
    """A block of many rows uses the copy; it differs from the bundle's weights by rounding only."""
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    out = ouro_edge.export(HRM, tmp_path / "int8", precision="int8").path
    ids = np.random.default_rng(1).integers(12, 320, 90).tolist()
    with ouro_edge.load(exported) as exact:
        wanted, causal = (exact.forward(ids, prefix=prefix).logits for prefix in (80, 0))
    for kv in ("fp32", "int8"):
        with ouro_edge.load(out, prefill_weights="int8", kv=kv) as fast:
            found = fast.forward(ids, prefix=80).logits
        assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
        assert np.linalg.norm(causal - wanted) > 0.2 * np.linalg.norm(wanted)


def test_nothing_is_drafted_where_only_the_last_loop_means_something(onnx):
    with pytest.raises(RequestError, match="trained to be read after all its loops only"):
        onnx.generate(IDS, speculate=True)
    *_, done = onnx.generate(IDS, max_tokens=3)
    assert done.usage.drafted_tokens == 0
