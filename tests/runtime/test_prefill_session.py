"""The fast way for long prompts: close to the lean one, rows independent, made once, refused where it cannot work."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import ouro_edge
from ouro_edge import prefill_weights as prefill
from ouro_edge.bundle.bundle import BLOCK_FILES, DATA_FILE, open_bundle
from ouro_edge.bundle.prefill_copy import RECORD_FILE, is_complete
from ouro_edge.errors import ExportError, RequestError
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder
from ouro_edge.export.prefill_copy import write_prefill_copy
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.loading import export_gguf
from ouro_edge.runtime.backend import prefill_session as prefill_copy
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth
from ouro_edge.runtime.model import Model
from ouro_edge.system.hub import resolve

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
    with ouro_edge.load(bundle, prefill="lean") as lean, ouro_edge.load(bundle, prefill="fast") as fast:
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
    with Model(bundle, kv=kv) as lean, Model(bundle, kv=kv, prefill_copy=copy) as fast:
        seen = calls_of(fast, monkeypatch)
        states, caches = [], []
        for model in (lean, fast):
            sequence = model.new_sequence()
            for ids in (IDS[:90], [5], IDS[:140]):
                sequence.append(ids)
                state = sequence.think(FullDepth()).hidden
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
    with ouro_edge.load(bundle, prefill="fast") as model:
        a, b = model.new_sequence(), model.new_sequence()
        a.append(IDS[:100])
        b.append([*IDS[:80], *IDS[100:150]])
        rows = []
        for sequence in (a, b):
            kept = []
            sequence.advance(1, sink=lambda loop, start, hidden, gate, kept=kept: kept.append(hidden.copy()))
            rows.append(np.concatenate(kept)[:80])
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


@pytest.mark.parametrize("opened", [False, True])
def test_few_rows_take_the_exact_way_whatever_came_before(bundle, monkeypatch, opened):
    with ouro_edge.load(bundle, prefill="lean") as lean, ouro_edge.load(bundle, prefill="fast") as fast:
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
    monkeypatch.setattr("ouro_edge.runtime.backend.block.PREFILL_ROWS", 140)
    with ouro_edge.load(bundle, prefill="fast") as fast:
        seen = calls_of(fast, monkeypatch)
        fast.forward(IDS, exit=FixedDepth(2))
    assert seen == [75] * 4


def test_both_ways_append_to_one_cache(bundle):
    """A long prompt, then single tokens, then a long turn again, which makes the cache grow between the ways."""
    with ouro_edge.load(bundle, prefill="lean") as lean, ouro_edge.load(bundle, prefill="fast") as fast:
        states = []
        for model in (lean, fast):
            sequence = model.new_sequence()
            for ids in (IDS[:90], [5], [6], IDS[:140], [7]):
                sequence.append(ids)
                state = sequence.think(FullDepth()).hidden
            states.append(state)
        cosine = states[0] @ states[1] / np.linalg.norm(states[0]) / np.linalg.norm(states[1])
        assert cosine > 0.97


def test_made_once_and_again_when_damaged(bundle, cache, monkeypatch):
    with ouro_edge.load(bundle, prefill="fast"):
        pass
    (made,) = cache.iterdir()
    assert is_complete(made)
    assert all(snr > 30 for snr in json.loads((made / RECORD_FILE).read_text())["snr_db"].values())
    with monkeypatch.context() as patch:
        patch.setattr("ouro_edge.export.prefill_copy.write_prefill_copy", None)  # would fail if it were called
        ouro_edge.load(bundle, prefill="fast").close()
    with (made / DATA_FILE).open("ab") as file:
        file.write(b"x")
    ouro_edge.load(bundle, prefill="fast").close()
    assert is_complete(made)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0"])
def test_a_gguf_file_has_one_too(kind, checkpoint_of, tmp_path):
    checkpoint = checkpoint_of(hidden_size=64, head_dim=16, intermediate_size=96)
    file, _ = export_gguf(resolve(checkpoint), tmp_path / f"model-{kind}.gguf", kind)
    with ouro_edge.load(file, prefill="lean") as lean, ouro_edge.load(file, prefill="fast") as fast:
        wanted, found = (m.forward(IDS, exit=FixedDepth(2)).logits for m in (lean, fast))
    assert not np.array_equal(wanted, found)
    assert np.linalg.norm(wanted - found) < 0.06 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["probe.onnx", "model.onnx"])
def test_a_bent_graph_is_made_again(bundle, cache, name):
    ouro_edge.load(bundle, prefill="fast").close()
    (made,) = cache.iterdir()
    (made / name).write_bytes((made / name).read_bytes()[:-20])
    assert not is_complete(made)
    ouro_edge.load(bundle, prefill="fast").close()
    assert is_complete(made)


def test_several_may_make_it_at_once(bundle, cache):
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(lambda _: ouro_edge.load(bundle, prefill="fast"), range(4)):
            model.close()
    assert [is_complete(made) for made in cache.iterdir()] == [True]


def test_a_copy_that_is_cleared_meanwhile_is_told_once_and_not_needed(bundle, cache, caplog):
    with ouro_edge.load(bundle, prefill="lean") as lean, ouro_edge.load(bundle, prefill="fast") as fast:
        shutil.rmtree(cache)
        wanted, found = (m.forward(IDS, exit=FixedDepth(1)).logits for m in (lean, fast))
        np.testing.assert_array_equal(found, wanted)
        fast.forward(IDS, exit=FixedDepth(1))
    assert [r.message.startswith("long prompts go the lean way from now on") for r in caplog.records] == [True]


def test_rows_of_odd_width_are_not_rotated(checkpoint_of, bundle_of):
    bundle = bundle_of(checkpoint_of(intermediate_size=99), "int8", block_size=16)
    with ouro_edge.load(bundle, prefill="lean") as lean, ouro_edge.load(bundle, prefill="fast") as fast:
        wanted, found = (m.forward(IDS, exit=FixedDepth(1)).logits for m in (lean, fast))
    assert 0 < np.linalg.norm(wanted - found) < 0.05 * np.linalg.norm(wanted)


def test_a_cache_that_cannot_be_written_is_one_line(bundle, cache):
    cache.write_text("a file")
    with pytest.raises(ExportError, match=r"cannot be written: .*use --prefill lean"):
        ouro_edge.load(bundle, prefill="fast")


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), RuntimeError("no home directory")])
def test_a_cache_without_a_place_is_one_line_and_none_unasked(bundle, monkeypatch, problem):
    def fail():
        raise problem

    monkeypatch.setattr(prefill, "cache_directory", fail)
    monkeypatch.setattr(prefill, "_pays", lambda bundle: True)
    ouro_edge.load(bundle).close()
    with pytest.raises(ExportError, match=r"has no place: .*use --prefill lean"):
        ouro_edge.load(bundle, prefill="fast")


def test_the_copy_belongs_to_the_file_and_to_what_it_means(bundle, cache, tmp_path):
    """Not to the checksum that a manifest claims: a large file is not hashed when it is opened."""
    same = shutil.copytree(bundle, tmp_path / "same")
    config = open_bundle(bundle).config
    for path, changes in ((bundle, {}), (same, {}), (same, {"rms_norm_eps": 2 * config.rms_norm_eps})):
        opened = open_bundle(path)
        opened.config = replace(config, **changes)
        prefill.prefill_copy_for(opened, "fast")
        prefill.prefill_copy_for(opened.with_context(50), "fast")  # the same one
    assert len(list(cache.iterdir())) == 3
    data = same / DATA_FILE
    os.utime(data, ns=(0, data.stat().st_mtime_ns + 1))
    prefill.prefill_copy_for(open_bundle(same), "fast")
    assert len(list(cache.iterdir())) == 4


def test_nothing_half_written_stays(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("ouro_edge.export.prefill_copy.probe_graph", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_prefill_copy(open_bundle(bundle), tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []


def test_auto_wants_a_large_model_and_memory(bundle, cache, monkeypatch):
    ouro_edge.load(bundle).close()
    assert not cache.exists()  # small
    monkeypatch.setattr(prefill, "_SMALLEST", 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(prefill, "available_memory", lambda: 1000)
    assert prefill.prefill_copy_for(open_bundle(bundle), "auto") is None
    monkeypatch.setattr(prefill, "available_memory", lambda: 1 << 40)
    four_bits = open_bundle(bundle).manifest.recipe.startswith("int4")
    assert (prefill.prefill_copy_for(open_bundle(bundle), "auto") is not None) == four_bits
    shutil.rmtree(cache, ignore_errors=True)
    monkeypatch.setattr(prefill_copy, "multiplies_exactly", lambda probe: False)
    assert prefill.prefill_copy_for(open_bundle(bundle), "auto") is None
    with pytest.raises(RequestError, match="needs a CPU that multiplies int8 exactly"):
        prefill.prefill_copy_for(open_bundle(bundle), "fast")
    assert not cache.exists()  # nothing is written for a CPU that cannot use it


def test_an_app_without_onnx_goes_the_lean_way(bundle, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "ouro_edge.export.prefill_copy", None)  # as if what it imports were missing
    monkeypatch.setattr(prefill, "_pays", lambda bundle: True)
    assert prefill.prefill_copy_for(open_bundle(bundle), "auto") is None
    with pytest.raises(
        ExportError, match=r"needs ouro_edge\.export\.prefill_copy to make its copy of the weights: use lean"
    ):
        prefill.prefill_copy_for(open_bundle(bundle), "fast")


def test_what_cannot_be_done_is_refused(bundle_of):
    with pytest.raises(RequestError, match="prefill is 'slow'; wanted auto, fast or lean"):
        ouro_edge.load(bundle_of(), prefill="slow")
    with pytest.raises(RequestError, match="computes in float32"):
        ouro_edge.load(bundle_of(), prefill="fast")
