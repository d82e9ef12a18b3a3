"""`ouro-edge bench --tune` on a small block: what it prints and keeps, not which is best."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ouro_edge.cli import main
from ouro_edge.cli import tune as command
from ouro_edge.measure import tune
from ouro_edge.runtime.backend.session import default_threads
from ouro_edge.system.cpus import available_threads


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(command, "_QUIET", 0.0)
    shapes = replace(tune.SHAPES, hidden_size=256, intermediate_size=256, num_heads=2, num_kv_heads=2, num_layers=1)
    monkeypatch.setattr(tune, "SHAPES", shapes)


def bench(*arguments: str):
    return CliRunner().invoke(main, ["bench", *arguments])


def test_tables_and_what_to_do():
    result = bench("--tune")
    assert result.exit_code == 0, result.output
    _, formats, threads, advice = result.stdout.strip().split("\n\n")
    assert [len(lines.split("\n")) - 1 for lines in (formats, threads)] == [5, min(8, available_threads())]
    assert formats.count("chosen") == threads.count("chosen") == 1
    assert [line.split()[0] for line in advice.split("\n")] == ["--threads", "--block-size", "--prefill"]
    assert advice.split()[1] == f"{default_threads()}:"


def test_json_says_the_same(tmp_path):
    report = json.loads(bench("--tune", "--json").stdout)
    assert report["threads"] == default_threads() and report["block_size"] in (32, 64, 128)
    kept = json.loads((tmp_path / "tune.json").read_text())
    assert kept["threads"] == report["threads"] and kept["measured"] == report["measured"]
    assert report["file"] == str(tmp_path / "tune.json")


def test_it_times_the_machine_and_takes_nothing_else(tmp_path):
    for extra in (["model"], ["--threads", "1"], ["-p", "5"]):
        result = bench("--tune", *extra)
        assert result.exit_code != 0 and "leave out" in result.stderr and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_a_busy_machine_gave_is_shown_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_QUIET", 100.0)
    result = bench("--tune")
    assert result.exit_code == 0 and "nothing was kept" in result.stderr and "best now" in result.stdout
    assert json.loads(bench("--tune", "--json").stdout)["file"] is None
    assert list(tmp_path.iterdir()) == []
