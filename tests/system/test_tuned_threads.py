"""What `bench --tune` left in the cache is used where it fits this machine, and never trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ouro_edge
from ouro_edge.errors import ExportError
from ouro_edge.runtime.backend import session
from ouro_edge.system import tuned_threads as tuned
from ouro_edge.system.tuned_threads import TUNED_FILE, cpu_name, save_tuned, tuned_threads


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_saved_is_found_on_the_same_machine_only(monkeypatch):
    assert tuned_threads(4, "1.0") is None
    save_tuned(2, 4, "1.0", {})
    assert tuned_threads(4, "1.0") == 2
    assert tuned_threads(3, "1.0") is None and tuned_threads(4, "1.1") is None
    monkeypatch.setattr(tuned, "cpu_name", lambda: "another")
    assert tuned_threads(4, "1.0") is None


@pytest.mark.parametrize(
    "change",
    [{"threads": 0}, {"threads": 5}, {"threads": True}, {"threads": "2"}, {"threads": None}, {"version": 2},
     {"measured": None}, {"more": 1}],
)  # fmt: skip
def test_a_file_with_other_content_counts_as_none(cache, change):
    content = json.loads(save_tuned(2, 4, "1.0", {}).read_text())
    (cache / TUNED_FILE).write_text(json.dumps(content | change))
    assert tuned_threads(4, "1.0") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_broken_file_counts_as_none(cache, content):
    save_tuned(2, 4, "1.0", {}).write_bytes(content)
    assert tuned_threads(4, "1.0") is None


def test_models_load_without_a_home_directory(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tuned, "cache_directory", nowhere)
    assert tuned_threads(4, "1.0") is None
    with pytest.raises(ExportError, match="OURO_EDGE_CACHE"):
        save_tuned(2, 4, "1.0", {})


def test_a_cache_that_cannot_be_written_is_one_line(cache):
    cache.write_text("a file")
    with pytest.raises(ExportError, match="cannot be kept"):
        save_tuned(2, 4, "1.0", {})


def test_nothing_half_written_stays(cache):
    (cache / TUNED_FILE).mkdir(parents=True)  # so that the last step fails
    with pytest.raises(ExportError, match="cannot be kept"):
        save_tuned(2, 4, "1.0", {})
    assert [file.name for file in cache.iterdir()] == [TUNED_FILE]


def test_the_runtime_takes_it_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(session, "available_threads", lambda: 3)
    assert session.default_threads() == 3
    save_tuned(2, 3, session.import_onnxruntime().__version__, {})
    assert session.default_threads() == 2


def test_it_may_because_threads_change_no_result():
    ids = np.random.default_rng(0).integers(3, 200, 300).tolist()
    outputs = []
    for threads in (1, 2, 3):
        with ouro_edge.load(threads=threads) as model:
            outputs.append(model.forward(ids).logits)
    assert (outputs[0] == outputs[1]).all() and (outputs[0] == outputs[2]).all()


def test_the_cpu_has_a_name():
    assert cpu_name() and cpu_name() == cpu_name().strip() and "\n" not in cpu_name()
