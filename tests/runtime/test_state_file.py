"""A sequence saved, loaded, forked and kept in a prefix cache goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ouro_edge
from ouro_edge import PrefixCache, load_sequence, save_sequence
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import RequestError
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth
from ouro_edge.runtime.saved.state_file import is_saved_sequence

PROMPT = [5, 17, 3, 88, 41, 41, 7, 60, 12, 33, 2, 0, 95, 11]


@pytest.fixture(scope="module")
def bundle(bundle_of, checkpoint_of, tmp_path_factory):
    """A calibrated float32 model."""
    path = shutil.copytree(bundle_of(checkpoint_of()), tmp_path_factory.mktemp("state") / "model")
    calibrate(open_bundle(path))
    return path


@pytest.fixture(scope="module", params=["fp32", "int8", "int4", "shared"])
def model(request, bundle):
    """The same model over every kind of cache."""
    kind = {"kv": "int8", "kv_share": "last"} if request.param == "shared" else {"kv": request.param}
    with ouro_edge.load(bundle, **kind) as loaded:
        yield loaded


def uneven(model, extra=0):
    """A sequence whose loops are at different positions."""
    sequence = model.new_sequence()
    sequence.append(PROMPT)
    sequence.run_until_exit(FixedDepth(3))
    for token in range(30, 36 + extra):
        sequence.append([token])
        sequence.run_until_exit(FixedDepth(1 + token % 2))
    return sequence


def same_from_here(a, b):
    """Both go on alike, over the waiting positions too."""
    assert (a.tokens, a.frontier) == (b.tokens, b.frontier)
    for tokens in ([7], [8, 9, 10]):
        a.append(tokens)
        b.append(tokens)
        x, y = a.run_until_exit(FullDepth()), b.run_until_exit(FullDepth())
        np.testing.assert_array_equal(x.hidden, y.hidden)


def test_a_saved_sequence_goes_on_as_if_never_saved(model, tmp_path):
    sequence = uneven(model)
    save_sequence(sequence, tmp_path / "state")
    loaded = load_sequence(model, tmp_path / "state")
    assert loaded.work.calls == 0
    same_from_here(sequence, loaded)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_an_empty_sequence_and_one_that_was_only_fed(model, tmp_path):
    for tokens in ([], PROMPT):
        sequence = model.new_sequence()
        sequence.append(tokens)
        save_sequence(sequence, tmp_path / "state")
        assert load_sequence(model, tmp_path / "state").frontier == [len(tokens), 0, 0, 0, 0]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(length=st.integers(0, 20))
def test_a_fork_is_a_rewound_copy(model, length):
    sequence = uneven(model)
    child, copy = sequence.copy_prefix(length), uneven(model)
    copy.truncate(length)
    same_from_here(child, copy)
    same_from_here(sequence, uneven(model))  # the parent has not felt it


def test_a_state_of_another_model_or_cache_is_refused(model, bundle, bundle_of, checkpoint_of, tmp_path):
    save_sequence(uneven(model), tmp_path / "state")
    kv = "fp32" if model.kv != "fp32" else "int8"
    with ouro_edge.load(bundle, kv=kv) as other, pytest.raises(RequestError, match="another KV cache: load the model"):
        load_sequence(other, tmp_path / "state")
    strange = shutil.copytree(bundle_of(checkpoint_of(seed=8)), tmp_path / "strange")
    calibrate(open_bundle(strange))
    with (
        ouro_edge.load(strange, kv=model.kv, kv_share=model.kv_share) as other,
        pytest.raises(RequestError, match="saved with another model"),
    ):
        load_sequence(other, tmp_path / "state")


def _header(change):
    def apply(data):
        line, rest = data.split(b"\n", 1)
        return json.dumps({**json.loads(line), **change}).encode() + b"\n" + rest

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-40], "size does not fit"),
        (lambda data: data + b"x", "size does not fit"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "differs from its checksum"),
        (lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:], "differs from its checksum"),
        (lambda data: b"", "not a saved sequence"),
        (lambda data: b"[" * 100_000, "not a saved sequence"),
        (lambda data: b"\x00" * 5000, "not a saved sequence"),
        (_header({"version": 2}), "version 2 of a saved"),
        (_header({"frontier": [1 << 40] * 5}), "set a larger context"),
        (_header({"frontier": [20, 20, 14, 14, 15]}), "size does not fit"),
        (_header({"frontier": [20, 20, 14, 14, -1]}), "size does not fit"),
        (_header({"frontier": "20"}), "size does not fit"),
        (_header({"frontier": [True] * 5}), "size does not fit"),
        (_header({"kv": "int9"}), "another KV cache"),
    ],
)
def test_a_damaged_state_is_one_line(bundle, tmp_path, damage, says):
    with ouro_edge.load(bundle, kv="fp32") as model:
        save_sequence(uneven(model), tmp_path / "state")
        (tmp_path / "state").write_bytes(damage((tmp_path / "state").read_bytes()))
        with pytest.raises(RequestError, match=says) as caught:
            load_sequence(model, tmp_path / "state")
        assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(bundle, tmp_path):
    with ouro_edge.load(bundle) as model:
        with pytest.raises(RequestError, match="cannot be read"):
            load_sequence(model, tmp_path / "nowhere")
        with pytest.raises(RequestError, match="cannot be written"):
            save_sequence(model.new_sequence(), tmp_path / "no" / "folder")


@pytest.mark.parametrize("path", ["", ".", "pipe", "a\0b", None, 5])
def test_what_is_no_file_is_left_alone(bundle, path, tmp_path, monkeypatch):
    """A device or a pipe at that name would be replaced by the file."""
    monkeypatch.chdir(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
    else:
        (tmp_path / "pipe").mkdir()
    with ouro_edge.load(bundle) as model, pytest.raises(RequestError):
        save_sequence(model.new_sequence(), path)
    assert [left.name for left in tmp_path.iterdir()] == ["pipe"]
    assert not (tmp_path / "pipe").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_opened(bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not is_saved_sequence(tmp_path / "pipe")
    with ouro_edge.load(bundle) as model, pytest.raises(RequestError, match="is not a regular file"):
        load_sequence(model, tmp_path / "pipe")


def test_a_neighbours_file_is_left_alone(bundle, tmp_path):
    (tmp_path / "state.partial").write_text("mine")
    with ouro_edge.load(bundle) as model:
        save_sequence(model.new_sequence(), tmp_path / "state")
    assert (tmp_path / "state.partial").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_scored_sequence_can_be_saved_and_goes_on(model, tmp_path):
    """Scoring runs loops to different positions, of which a shared cache can use nothing."""
    sequence = model.new_sequence()
    model.score(PROMPT, sequence=sequence, exit=ExitThreshold(0.3))
    save_sequence(sequence, tmp_path / "state")
    loaded = load_sequence(model, tmp_path / "state")
    fresh = model.new_sequence()
    results = []
    for each in (sequence, loaded, fresh):
        each.set_prompt([*PROMPT, 4])
        results.append(each.run_until_exit(FullDepth()).hidden)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], atol=0.1 if model.kv == "int4" else 0.02)


def test_sequences_with_nothing_in_them_are_not_kept(model):
    cache = PrefixCache(model, 1 << 30)
    for _ in range(5):
        cache.checkin(cache.checkout([1, 2, 3]))
    assert len(cache) == 0
    once = uneven(model)
    cache.checkin(once)
    cache.checkin(once)
    assert (len(cache), cache.nbytes) == (1, once.kv_bytes)


def test_the_cache_gives_back_the_longest_prefix(model):
    cache = PrefixCache(model, 1 << 30)
    a, b = uneven(model), model.new_sequence()
    b.append([1, 2, 3])
    b.run_until_exit(FullDepth())
    cache.checkin(a)
    cache.checkin(b)
    assert cache.checkout([*a.tokens, 50]) is a
    assert len(cache) == 1
    assert cache.checkout([1, 2, 3, 4]) is b
    assert len(cache.checkout([60])) == 0


def test_a_short_common_prefix_is_copied_and_the_rest_kept(model):
    cache = PrefixCache(model, 1 << 30)
    whole = uneven(model)
    cache.checkin(whole)
    taken = cache.checkout([*PROMPT[:6], 90, 91])
    assert taken is not whole
    assert taken.tokens == PROMPT[:6]
    assert len(cache) == 1
    *_, done = model.generate([*PROMPT[:6], 90, 91], max_tokens=2, sequence=taken, stop_ids=())
    assert done.usage.cached_tokens == 6


def test_the_oldest_go_when_memory_is_full(model):
    one = uneven(model).kv_bytes
    cache = PrefixCache(model, 2 * one)
    sequences = [uneven(model) for _ in range(3)]
    for i, sequence in enumerate(sequences):
        sequence.tokens[0] = 60 + i  # three different conversations
        cache.checkin(sequence)
        assert cache.nbytes <= 2 * one
    assert len(cache.checkout(sequences[0].tokens)) == 0
    assert cache.checkout(sequences[2].tokens) is sequences[2]
    nothing = PrefixCache(model, 0)
    nothing.checkin(sequences[1])
    assert len(nothing) == 0
    with pytest.raises(RequestError, match="max_bytes is"):
        PrefixCache(model, -1)


def test_a_conversation_through_the_cache_equals_one_without(model):
    cache = PrefixCache(model, 1 << 30)
    ids = list(PROMPT)
    for turn in range(3):
        sequence = cache.checkout(ids)
        *tokens, done = model.generate(ids, max_tokens=5, sequence=sequence, exit=ExitThreshold(0.6), stop_ids=())
        cache.checkin(sequence)
        if model.kv == "fp32":  # rounding of a quantised cache may differ between a prompt and single steps
            fresh = list(model.generate(ids, max_tokens=5, exit=ExitThreshold(0.6), stop_ids=()))[:-1]
            assert [t.id for t in tokens] == [t.id for t in fresh]
        assert done.usage.cached_tokens == (len(ids) - 4 if turn else 0)
        ids += [*(t.id for t in tokens), 40, 41, 42]
