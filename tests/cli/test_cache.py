"""`ouro-edge cache` shows and clears what the program keeps, and touches nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from click.testing import CliRunner

from ouro_edge.bundle.directory import open_bundle
from ouro_edge.cli import main
from ouro_edge.loading import resolve_model
from ouro_edge.prefill_weights import prefill_copy_for

MODEL, COPY = "some.model-int4-0123456789ab", "prefill-0123456789abcdef"
LEFT = [f".{MODEL}.01234567.partial", f"{COPY}.partial-abc_1234"]


def cache(*arguments, answer=None):
    return CliRunner().invoke(main, ["cache", *arguments], input=answer)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache with four entries of ours, and what is not ours: files, other folders, links with our names."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("OURO_EDGE_CACHE", str(directory))
    for name in (MODEL, COPY, *LEFT, "ouro-int4", "photos"):
        (directory / name).mkdir(parents=True)
        (directory / name / "data").write_bytes(bytes(1000))
    (directory / "notes-int4-0123456789ab").write_text("a file")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(bytes(5000))
    (directory / "link-int4-0123456789ab").symlink_to(tmp_path / "outside")
    (directory / MODEL / "link").symlink_to(tmp_path / "outside")
    return directory


def test_what_is_there_is_listed(home):
    os.utime(home / MODEL / "data", (time.time() - 3 * 86400,) * 2)
    result = cache()
    assert result.exit_code == 0
    head, *rows, total = result.stdout.splitlines()
    assert head.split() == ["entry", "size", "last", "used"]
    assert {row.split()[0] for row in rows} == {MODEL, COPY, *LEFT}
    assert rows[-1].split()[0] == MODEL  # the longest unused comes last
    assert rows[-1].split()[-1] == time.strftime("%Y-%m-%d", time.localtime(time.time() - 3 * 86400))
    assert total == f"4 kB in {home}"


def test_clearing_asks_and_leaves_all_else(home, tmp_path):
    before = sorted(home.iterdir())
    result = cache("--clear", answer="n\n")
    assert result.exit_code == 1 and sorted(home.iterdir()) == before
    assert "Delete 4 entries, 4 kB" in result.output
    assert cache("--clear").exit_code == 1 and sorted(home.iterdir()) == before  # nobody is there to ask
    assert cache("--clear", answer="y\n").exit_code == 0
    names = {path.name for path in home.iterdir()}
    assert names == {"ouro-int4", "photos", "notes-int4-0123456789ab", "link-int4-0123456789ab"}
    assert (tmp_path / "outside" / "kept").stat().st_size == 5000
    assert cache("--clear", "--yes").stdout == f"{home} has no entries\n"


def test_one_entry_is_cleared_by_its_name(home):
    assert cache("--clear", "--yes", COPY).stdout == f"deleted {COPY}\n"
    assert not (home / COPY).exists() and (home / MODEL).is_dir()


def test_the_thread_counts_of_earlier_versions_are_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    old = {"version": 1, "cpu": "a", "cpus": 2, "onnxruntime": "1.29", "threads": 2, "measured": {}}
    (tmp_path / "tune.json").write_text(json.dumps(old))
    assert cache().stdout.splitlines()[1].split()[0] == "tune.json"
    assert cache("--clear", "--yes").stdout == "deleted tune.json\n" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "threads": 2}', "[" * 100_000])
def test_another_file_of_that_name_is_not_ours(tmp_path, monkeypatch, content):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    (tmp_path / "tune.json").write_text(content)
    assert cache("--clear", "--yes").stdout == f"{tmp_path} has no entries\n" and (tmp_path / "tune.json").exists()


@pytest.mark.parametrize(
    "name", ["photos", "../outside", ".", "..", "", "link-int4-0123456789ab", "notes-int4-0123456789ab", "/etc"]
)
def test_a_name_that_is_no_entry_is_refused(home, name):
    result = cache("--clear", "--yes", name)
    assert result.exit_code == 1 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert len(list(home.iterdir())) == 8


def test_a_cache_that_is_not_there_or_no_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "nowhere"))
    assert cache().stdout == f"{tmp_path / 'nowhere'} has no entries\n"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "file"))
    assert cache().exit_code == 1 and cache().stderr.count("\n") == 1


def test_what_the_program_makes_is_found(tmp_path, monkeypatch, checkpoint_of):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    checkpoint = shutil.copytree(checkpoint_of(), tmp_path / "checkpoint")
    model = resolve_model(checkpoint)
    monkeypatch.setattr("ouro_edge.runtime.backend.prefill_session.multiplies_exactly", lambda path: True)
    copy = prefill_copy_for(open_bundle(model), "fast")
    rows = cache().stdout.splitlines()[1:-1]
    assert {row.split()[0] for row in rows} == {model.name, copy.name}
    assert cache("--clear", "--yes").exit_code == 0 and list((tmp_path / "cache").iterdir()) == []


def test_a_new_conversion_replaces_those_of_the_same_source(tmp_path, monkeypatch, checkpoint_of):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ouro_edge.runtime.backend.prefill_session.multiplies_exactly", lambda path: True)
    here, there = (shutil.copytree(checkpoint_of(), tmp_path / name / "checkpoint") for name in ("a", "b"))
    other = resolve_model(there)  # of the same name, from another place
    first = resolve_model(here)
    copy = prefill_copy_for(open_bundle(first), "int8")
    assert resolve_model(here) == first and copy.is_dir()
    (here / "notes.txt").write_text("changed")
    second = resolve_model(here)
    assert second != first
    assert set((tmp_path / "cache").iterdir()) == {other, second}
    os.utime(second / "cached_from.txt", (0, 0))
    resolve_model(here)
    assert (second / "cached_from.txt").stat().st_mtime > time.time() - 60  # use is recorded, also without access times
