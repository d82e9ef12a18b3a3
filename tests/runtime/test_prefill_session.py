"""The fast way for long prompts: close to the lean one, rows independent, made once, refused where it cannot work."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ouro_edge
from ouro_edge.bundle.directory import BLOCK_FILES, DATA_FILE, open_bundle
from ouro_edge.bundle.prefill_copy import RECORD_FILE, is_complete
from ouro_edge.errors import ExportError
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder
from ouro_edge.export.prefill_copy import write_prefill_copy
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.runtime.backend import prefill_session as prefill_copy
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth
from ouro_edge.runtime.open_model import open_model

IDS = np.random.default_rng(4).integers(3, 96, 150).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of our own."""
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["int4", "int8"])
def bundle(request, bundle_of, checkpoint_of):
    """Blocks of 16: the checkpoint's rows are 48 wide."""
    return bundle_of(checkpoint_of(), request.param, block_size=16)


def calls_of(model, monkeypatch):
    """The number of rows of every call that the fast session got."""
    seen, session_for = [], prefill_copy.PrefillSession.session_for

    def count(self, rows):
        session = session_for(self, rows)
        if session is not None:
            seen.append(rows)
        return session

    monkeypatch.setattr(prefill_copy.PrefillSession, "session_for", count)
    return seen


def test_close_to_the_lean_way_at_every_depth(bundle, monkeypatch):
    with ouro_edge.load(bundle, prefill_weights="none") as lean, ouro_edge.load(bundle, prefill_weights="int8") as fast:
        seen = calls_of(fast, monkeypatch)
        for depth in (1, 4):
            wanted, found = (m.forward(IDS, exit=FixedDepth(depth)).logits for m in (lean, fast))
            assert not np.array_equal(wanted, found)
            error = np.linalg.norm(wanted - found) / np.linalg.norm(wanted)
            assert error < 0.05 * depth
            assert (wanted.argmax(1) == found.argmax(1)).mean() > 0.9
        assert seen == [150] * 5


@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1, "head_dim": 12}],
    ids=["own", "shared", "padded"],
)
@pytest.mark.parametrize("kv", ["fp32", "int8", "int4"])
def test_attention_is_the_same(kv, sizes, checkpoint_of, bundle_of, tmp_path, monkeypatch):
    """The other graph over the same float weights: what differs is attention alone, which grows the same cache."""
    path = shutil.copytree(bundle_of(checkpoint_of(**sizes)), tmp_path / "model")
    calibrate(open_bundle(path))
    bundle = open_bundle(path)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path / DATA_FILE, copy)
    graph = block_graph(bundle.config, bundle.manifest.tensors, kv, PrefillBuilder)
    (copy / BLOCK_FILES[kv]).write_bytes(graph.SerializeToString())
    with open_model(bundle, kv=kv) as lean, open_model(bundle, kv=kv, prefill_copy=copy) as fast:
        seen = calls_of(fast, monkeypatch)
        states, caches = [], []
        for model in (lean, fast):
            sequence = model.new_sequence()
            for ids in (IDS[:90], [5], IDS[:140]):
                sequence.append(ids)
                state = sequence.run_until_exit(FullDepth()).hidden
            states.append(state)
            caches.append([array.copy() for loop in (1, 4) for array in sequence.kv_of(loop).valid(231)])
    assert sum(seen) == 4 * (90 + 140)
    steps = {"fp32": 1e-4, "int8": 1, "int4": 0x11}[kv]
    for wanted, found in zip(*caches, strict=True):
        apart = np.abs(wanted.astype(np.float32) - found.astype(np.float32))
        assert apart.max() <= steps
        assert kv == "fp32" or (apart > 0).mean() < 0.01  # rounding of a last bit, now and then
    np.testing.assert_allclose(*states, atol={"fp32": 1e-4, "int8": 0.02, "int4": 0.2}[kv])


def test_rows_do_not_feel_their_neighbours(bundle):
    """A large row elsewhere in the call must not make a token's rounding coarser."""
    with ouro_edge.load(bundle, prefill_weights="int8") as model:
        a, b = model.new_sequence(), model.new_sequence()
        a.append(IDS[:100])
        b.append([*IDS[:80], *IDS[100:150]])
        rows = []
        for sequence in (a, b):
            rows.append(np.concatenate([chunk.states for chunk in sequence.advance(1)])[:80])
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


@pytest.mark.parametrize("opened", [False, True])
def test_few_rows_take_the_exact_way_whatever_came_before(bundle, monkeypatch, opened):
    with ouro_edge.load(bundle, prefill_weights="none") as lean, ouro_edge.load(bundle, prefill_weights="int8") as fast:
        if opened:
            fast.forward(IDS)
        seen = calls_of(fast, monkeypatch)
        for count in (20, 63):
            np.testing.assert_array_equal(*(m.forward(IDS[:count]).logits for m in (lean, fast)))
        for exit in (FullDepth(), ExitThreshold(0.5)):
            wanted, found = (list(m.generate(IDS[:12], max_tokens=8, exit=exit, stop_ids=())) for m in (lean, fast))
            assert [e.id for e in wanted[:-1]] == [e.id for e in found[:-1]]
        assert seen == []


def test_a_prompt_is_read_in_even_parts(bundle, monkeypatch):
    with ouro_edge.load(bundle, prefill_weights="int8") as fast:
        fast.backend.rows_per_call = 140
        seen = calls_of(fast, monkeypatch)
        fast.forward(IDS, exit=FixedDepth(2))
    assert seen == [75] * 4


def test_both_ways_append_to_one_cache(bundle):
    """A long prompt, then single tokens, then a long turn again, which makes the cache grow between the ways."""
    with ouro_edge.load(bundle, prefill_weights="none") as lean, ouro_edge.load(bundle, prefill_weights="int8") as fast:
        states = []
        for model in (lean, fast):
            sequence = model.new_sequence()
            for ids in (IDS[:90], [5], [6], IDS[:140], [7]):
                sequence.append(ids)
                state = sequence.run_until_exit(FullDepth()).hidden[0]
            states.append(state)
        cosine = states[0] @ states[1] / np.linalg.norm(states[0]) / np.linalg.norm(states[1])
        assert cosine > 0.97


def test_made_once_and_again_when_damaged(bundle, cache, monkeypatch):
    with ouro_edge.load(bundle, prefill_weights="int8"):
        pass
    (made,) = cache.iterdir()
    assert is_complete(made)
    assert all(snr > 30 for snr in json.loads((made / RECORD_FILE).read_text())["snr_db"].values())
    with monkeypatch.context() as patch:
        patch.setattr("ouro_edge.export.prefill_copy.write_prefill_copy", None)  # would fail if it were called
        ouro_edge.load(bundle, prefill_weights="int8").close()
    with (made / DATA_FILE).open("ab") as file:
        file.write(b"x")
    ouro_edge.load(bundle, prefill_weights="int8").close()
    assert is_complete(made)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0"])
def test_a_gguf_file_has_one_too(kind, checkpoint_of, tmp_path):
    checkpoint = checkpoint_of(hidden_size=64, head_dim=16, intermediate_size=96)
    file = ouro_edge.export(checkpoint, tmp_path / f"model-{kind}.gguf", precision=kind).path
    with ouro_edge.load(file, prefill_weights="none") as lean, ouro_edge.load(file, prefill_weights="int8") as fast:
        wanted, found = (m.forward(IDS, exit=FixedDepth(2)).logits for m in (lean, fast))
    assert not np.array_equal(wanted, found)
    assert np.linalg.norm(wanted - found) < 0.06 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["probe.onnx", "model.onnx"])
def test_a_bent_graph_is_made_again(bundle, cache, name):
    ouro_edge.load(bundle, prefill_weights="int8").close()
    (made,) = cache.iterdir()
    (made / name).write_bytes((made / name).read_bytes()[:-20])
    assert not is_complete(made)
    ouro_edge.load(bundle, prefill_weights="int8").close()
    assert is_complete(made)


def test_several_may_make_it_at_once(bundle, cache):
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(lambda _: ouro_edge.load(bundle, prefill_weights="int8"), range(4)):
            model.close()
    assert [is_complete(made) for made in cache.iterdir()] == [True]


def test_a_copy_that_is_cleared_meanwhile_is_told_once_and_not_needed(bundle, cache, caplog):
    with ouro_edge.load(bundle, prefill_weights="none") as lean, ouro_edge.load(bundle, prefill_weights="int8") as fast:
        shutil.rmtree(cache)
        wanted, found = (m.forward(IDS, exit=FixedDepth(1)).logits for m in (lean, fast))
        np.testing.assert_array_equal(found, wanted)
        fast.forward(IDS, exit=FixedDepth(1))
    assert [r.message.startswith("the prefill copy is no longer used") for r in caplog.records] == [True]


def test_rows_of_odd_width_are_not_rotated(checkpoint_of, bundle_of):
    bundle = bundle_of(checkpoint_of(intermediate_size=99), "int8", block_size=16)
    with ouro_edge.load(bundle, prefill_weights="none") as lean, ouro_edge.load(bundle, prefill_weights="int8") as fast:
        wanted, found = (m.forward(IDS, exit=FixedDepth(1)).logits for m in (lean, fast))
    assert 0 < np.linalg.norm(wanted - found) < 0.05 * np.linalg.norm(wanted)


def test_a_cache_that_cannot_be_written_is_one_line(bundle, cache):
    cache.write_text("a file")
    with pytest.raises(ExportError, match=r"cannot be written: .*use --prefill-weights none"):
        ouro_edge.load(bundle, prefill_weights="int8")


def test_nothing_half_written_stays(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("ouro_edge.export.prefill_copy.probe_graph", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_prefill_copy(open_bundle(bundle), tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []
