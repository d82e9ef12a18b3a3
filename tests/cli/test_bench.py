"""`ouro-edge bench` on the built-in model: what it prints, not how fast it is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

from ouro_edge.cli import main
from ouro_edge.cli.bench import fastest_threads
from ouro_edge.measure import bandwidth


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 20)


def bench(*arguments: str):
    return CliRunner().invoke(main, ["bench", *arguments])


def test_json_holds_every_repeat_of_every_test():
    result = bench(*"-p 5 -n 3 -d 0,9 --depths 1,4 --kv fp32,int8 --threads 1 --repeat 2 --json".split())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["machine"]["onnxruntime"] and report["machine"]["cpu"]
    assert [(run["kv"], run["threads"]) for run in report["runs"]] == [("fp32", 1), ("int8", 1)]
    for run in report["runs"]:
        tests = [(s["test"]["kind"], s["test"]["context"], s["test"]["depth"]) for s in run["speeds"]]
        assert tests == [(k, c, d) for c in (0, 9) for k in ("prefill", "decode") for d in (1, 4)]
        assert all(len(s["seconds"]) == 2 for s in run["speeds"])
        assert run["end"]["peak"] >= run["loaded"]["resident"] > 0
        assert min(run["memory_read"]) > 0


def test_tables_show_each_kind_on_its_own():
    result = bench(*"-p 5 -n 3 --depths 2 --repeat 1".split())
    assert result.exit_code == 0, result.output
    first, *tables = result.stdout.strip().split("\n\n")
    assert "nano on" in first and "onnxruntime" in first
    assert [table.split("\n")[0].split()[:4] for table in tables] == [
        ["kv", "threads", "memory", "read"],
        ["kv", "threads", "context", "prefill"],
        ["kv", "threads", "context", "decode"],
    ]
    assert tables[2].split("\n")[1].split()[:5] == ["fp32", tables[0].split("\n")[1].split()[1], "0", "3", "2"]


def test_streams_at_once():
    options = "-n 3 --depths 2,4 -d 0,9 --threads 1 --repeat 2 --parallel 1,3".split()
    result = bench("-p", "", *options, "--json")
    assert result.exit_code == 0, result.output
    [run] = json.loads(result.stdout)["runs"]
    tests = [(speed["context"], speed["depth"], speed["streams"]) for speed in run["streams"]]
    assert tests == [(c, d, n) for c in (0, 9) for d in (2, 4) for n in (0, 1, 3)]
    assert all(len(speed["rates"]) == 2 and min(speed["rates"]) > 0 for speed in run["streams"])
    table = bench("-p", "", *options).stdout.strip().split("\n\n")[-1].splitlines()
    assert "streams" in table[0] and len(table) == 13 and "1, alone" in table[1]
    assert bench("--parallel", "100").exit_code == 1


def test_an_empty_list_leaves_a_kind_out():
    result = bench("-p", "", "-n", "2", "--depths", "1", "--repeat", "1")
    assert result.exit_code == 0 and "decode" in result.stdout and "prefill" not in result.stdout


def test_empty_lists_elsewhere_mean_the_default():
    empty = [part for option in ("-d", "--depths", "--threads") for part in (option, "")]
    result = bench("-p", "", "-n", "2", "--repeat", "1", "--json", *empty)
    assert result.exit_code == 0, result.output
    [run] = json.loads(result.stdout)["runs"]
    assert [(s["test"]["context"], s["test"]["depth"]) for s in run["speeds"]] == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_list_of_thread_counts_is_compared():
    options = "-p 5 -n 3 --depths 1,2 --threads 1,2 --repeat 1".split()
    result = bench(*options)
    assert result.exit_code == 0, result.output
    *_, prefill, decode, last = result.stdout.strip().split("\n\n")
    for table in (prefill, decode):
        assert [line.split()[1] for line in table.split("\n")] == ["threads", "1", "1", "2", "2"]
    assert re.fullmatch(r"fastest: --threads [12] for prefill, --threads [12] for decode", last)
    report = json.loads(bench(*options, "--json").stdout)
    assert report["fastest_threads"] == {kind: fastest_threads(report["runs"], kind) for kind in ("prefill", "decode")}


def test_nothing_is_named_where_nothing_is_compared():
    result = bench(*"-p 5 -n 3 --depths 1 --threads 1 --kv fp32,int8 --repeat 1".split())
    assert result.exit_code == 0 and "fastest" not in result.stdout
    report = json.loads(bench("-p", "", *"-n 3 --depths 1 --threads 1,2 --repeat 1 --json".split()).stdout)
    assert report["fastest_threads"]["prefill"] is None and report["fastest_threads"]["decode"] in (1, 2)


def run_of(threads: int, **seconds: list[list[float]]) -> dict[str, Any]:
    """One run as the JSON has it; for each kind the seconds of each repeat of each test."""
    speeds = [{"test": {"kind": kind}, "seconds": times} for kind, tests in seconds.items() for times in tests]
    return {"threads": threads, "speeds": speeds}


def test_the_fastest_count_has_the_least_sum_of_medians():
    one = run_of(1, prefill=[[4.0, 5.0, 90.0]], decode=[[1.0], [3.0]])
    two = run_of(2, prefill=[[3.0, 4.0, 4.0]], decode=[[2.0], [3.0]])
    assert fastest_threads([one, two], "prefill") == 2 and fastest_threads([two, one], "decode") == 1
    # Over several KV types, the sum over all of them counts.
    assert fastest_threads([one, run_of(1, prefill=[[1.0]]), two, run_of(2, prefill=[[9.0]])], "prefill") == 1
    assert fastest_threads([one, one], "decode") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "5,x"], "is not a list of whole numbers"),
        (["-n", "0"], "below 1"),
        (["-p", "", "-n", ""], "nothing to time"),
        (["-p", ",", "-n", ","], "nothing to time"),
        (["--kv", ""], "kv is ''; expected auto"),
        (["--kv", "fp32,"], "kv is ''; expected auto"),
        (["--depths", "5"], "1 to 4 loops"),
        (["-d", "100000"], "do not fit this model's context"),
        (["--kv", "fp16"], "expected auto, fp32, int8, int4"),
        (["--threads", "9999"], "from 1 to 1024"),
        (["nowhere/at-all/x"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    result = bench(*arguments)
    assert result.exit_code != 0 and said in result.stderr
    assert "Traceback" not in result.output and result.stdout == ""
