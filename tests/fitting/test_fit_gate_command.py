"""`ouro-edge fit-gate` as a user meets it: from lines of text to a gate that the model uses, and every refusal."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from models import write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import GATE_FILE
from ouro_edge.cli import main
from ouro_edge.errors import RequestError

WORDS = "hello there how are you the user and the assistant".split()


def fit_gate(*arguments):
    result = CliRunner().invoke(main, ["fit-gate", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments, says):
    result = fit_gate(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr, result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, bundle_of):
    return bundle_of(add_tokenizer(write_checkpoint(tmp_path_factory.mktemp("speaker"), vocab_size=300)), "int8")


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy that a test may write to."""
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Lines of all forms."""
    rng = np.random.default_rng(0)

    def words(n):
        return " ".join(rng.choice(WORDS, n))

    records = []
    for i in range(14):
        user, assistant = ({"role": role, "content": words(8)} for role in ("user", "assistant"))
        records += [
            {"text": words(12)},
            {"prompt": words(6), "answer": words(8), "hops": i},
            {"messages": [user, assistant, user, assistant]},
            {"ids": rng.integers(0, 300, 20).tolist()},
        ]
    file = tmp_path_factory.mktemp("data") / "lines.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_a_gate_is_fitted_shown_stored_and_used(bundle, data):
    before = sorted(file.name for file in bundle.iterdir())
    result = fit_gate(bundle, "--data", data, "--budget", 2.3, "--threads", 1)
    assert result.exit_code == 0, result.output
    for says in ("by exit threshold", "at equal mean depth", "fixed", "NOT better" if "NOT" in result.stdout else "->"):
        assert says in result.stdout
    assert f"delete {GATE_FILE}" in result.stdout and "still contains the checkpoint's gate" in result.stdout
    assert sorted(file.name for file in bundle.iterdir()) == sorted([*before, GATE_FILE])
    stored = json.loads((bundle / GATE_FILE).read_text())
    report = stored["report"]
    assert (report["data"], report["objective"], report["budget"]) == ("lines.jsonl", "look-ahead", 2.3)
    assert report["tokens_fitted"] >= 400 and report["tokens_held_out"] >= 100
    assert report["cross_entropy"][1] < report["cross_entropy"][0]
    depth = report["by_depth"]["2.3"]["new"][0]
    assert 2.3 - 1 / report["tokens_held_out"] <= depth <= 2.3
    with ouro_edge.load(bundle) as model:
        assert model.default_exit() == ouro_edge.ExitThreshold(stored["threshold"])
        fitted = model.forward([5, 6, 7], exit=ouro_edge.FullDepth()).exit_probs
    with ouro_edge.load(bundle, gate="original") as model:
        original = model.forward([5, 6, 7], exit=ouro_edge.FullDepth()).exit_probs
    assert np.abs(fitted - original).max() > 0.01
    again = fit_gate(bundle, "--data", data, "--budget", 2.3, "--threads", 1)  # over the first: from the same start
    assert again.stdout == result.stdout and json.loads((bundle / GATE_FILE).read_text()) == stored


def test_the_table_tells_what_the_model_does_with_the_gate(bundle, data):
    """The report's held-out depths come again by running the model; the gate comes from the other lines alone."""
    from ouro_edge import fitting as gates

    assert fit_gate(bundle, "--data", data, "--objective", "published", "--seed", 3, "--threads", 1).exit_code == 0
    report = json.loads((bundle / GATE_FILE).read_text())["report"]
    with ouro_edge.load(bundle, threads=1) as model:
        limits = {"window": 512, "most_fitted": 20000, "most_held_out": 5000}
        fitted, held_out = gates.draw(gates.read_lines(data), model, **limits, seed=3, name="data")
        fit = gates.fit_to_features(gates.collect(model, fitted), gates.original_gate(open_bundle(bundle)), "published")
        np.testing.assert_allclose(model.gate.weight, fit.gate.weight, atol=1e-5)
        for threshold, column in (("0.5", "new"), ("0.8", "new")):
            depths = [
                model.forward(piece.ids[:-1], exit=ouro_edge.ExitThreshold(float(threshold))).depth[piece.counted - 1]
                for piece in held_out
            ]
            found = np.concatenate(depths).mean()
            assert found == pytest.approx(report["by_threshold"][threshold][column][0], abs=0.01)


def test_a_dry_run_writes_nothing_and_no_budget_stores_no_threshold(bundle, data, monkeypatch):
    before = sorted(bundle.iterdir())
    monkeypatch.setenv("OURO_EDGE_CACHE", str(bundle.parent))  # not written to, so not refused
    result = fit_gate(bundle, "--data", data, "--dry-run", "--max-tokens-fit", 400, "--threads", 1)
    assert result.exit_code == 0 and "nothing was written" in result.stdout and "400 tokens" in result.stdout
    assert sorted(bundle.iterdir()) == before
    monkeypatch.delenv("OURO_EDGE_CACHE")
    for objective in ("published", "horizon"):
        result = fit_gate(bundle, "--data", data, "--objective", objective, "--max-tokens-fit", 400, "--threads", 1)
        assert result.exit_code == 0 and "runs every loop" in result.stdout
        stored = json.loads((bundle / GATE_FILE).read_text())
        assert stored["threshold"] is None and stored["report"]["objective"] == objective


def test_the_function_writes_nothing_until_it_is_told_to(bundle, data, monkeypatch):
    before, calls = sorted(bundle.iterdir()), []
    fit = ouro_edge.fit_gate(bundle, data, budget=2, threads=1, progress=lambda *call: calls.append(call))
    assert sorted(bundle.iterdir()) == before and calls[-1][0] == calls[-1][1] == sum(fit.tokens)
    assert fit.cross_entropy[1] < fit.cross_entropy[0] and fit.comparison.by_depth[2.0][2].depth <= 2
    fixed, old, new = fit.comparison.mean_loss
    assert fit.comparison.is_better == (new < min(fixed, old))
    monkeypatch.setenv("OURO_EDGE_CACHE", str(bundle.parent))
    with pytest.raises(RequestError, match="belongs to the cache"):
        fit.write()
    monkeypatch.delenv("OURO_EDGE_CACHE")
    assert fit.write() == bundle / GATE_FILE
    stored = json.loads((bundle / GATE_FILE).read_text())
    assert stored["threshold"] == fit.gate.threshold and stored["report"] == json.loads(json.dumps(fit.gate.report))
    assert fit_gate(bundle, "--data", data, "--budget", 2, "--threads", 1).exit_code == 0
    stored_again = json.loads((bundle / GATE_FILE).read_text())
    assert stored_again["weight"] == stored["weight"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("budget", "2"), ("budget", 5), ("objective", "luck"), ("max_tokens_fit", 2.5), ("seed", None), ("seed", True)],
)
def test_the_function_refuses_what_the_command_line_cannot_pass(bundle, data, option, value):
    with pytest.raises(RequestError, match=f"{option} is {value!r}; expected"):
        ouro_edge.fit_gate(bundle, data, **{option: value})


def test_an_interrupt_leaves_the_old_gate(bundle, data, monkeypatch):
    from ouro_edge.runtime.sequence.sequence import TokenSequence

    (bundle / GATE_FILE).write_text("what was there before")
    before = sorted(bundle.iterdir())
    calls = []

    def advance(self, *arguments, **options):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    original = TokenSequence.advance
    monkeypatch.setattr(TokenSequence, "advance", advance)
    result = fit_gate(bundle, "--data", data, "--threads", 1)
    assert result.exit_code == 130
    assert (bundle / GATE_FILE).read_text() == "what was there before" and sorted(bundle.iterdir()) == before


def test_refusals_about_the_data(bundle, data, tmp_path):
    file = tmp_path / "x.jsonl"
    refused(bundle, "--data", tmp_path / "nowhere.jsonl", says="does not exist")
    refused(bundle, "--data", tmp_path, says="cannot be read")
    for content, says in (
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"text": "\xff"}\n', "not UTF-8 text (byte 10)"),
        (b'{"text": "hello"}\nhello\n', "x.jsonl line 2 is not valid JSON"),
        (b'{"ids": [1, 2, 300]}\n', "x.jsonl line 1: token id 300"),
        (b'{"text": "hello there"}\n' * 30, "expected at least 400 and 100"),
    ):
        file.write_bytes(content)
        refused(bundle, "--data", file, says=says)
    assert not (bundle / GATE_FILE).exists()


def test_refusals_about_the_model(bundle, data, tmp_path, bundle_of, checkpoint_of, monkeypatch):
    refused(bundle_of(), "--data", data, says="no tokenizer.json")
    refused(bundle_of(checkpoint_of(model_type="llama")), "--data", data, says="no exit gate")
    refused(bundle_of(checkpoint_of(total_ut_steps=1)), "--data", data, says="one loop")
    for no_bundle in (tmp_path, data, "ByteDance/Ouro-1.4B", checkpoint_of()):
        refused(no_bundle, "--data", data, says="not an exported model; run ouro-edge export")
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    refused(bundle, "--data", data, says="belongs to the cache")
    monkeypatch.delenv("OURO_EDGE_CACHE")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    refused(bundle, "--data", data, says="cannot be written to")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--budget", 0.5, "1 to 4"),
        ("--budget", 4.1, "1 to 4"),
        ("--budget", "nan", "1 to 4"),
        ("--max-tokens-fit", 399, "at least 400"),
        ("--seed", -1, "seed is -1"),
        ("--threads", 0, "threads is 0"),
    ],
)
def test_refusals_about_options(bundle, data, option, value, says):
    refused(bundle, "--data", data, option, value, says=says)


def test_help():
    result = fit_gate("--help")
    assert result.exit_code == 0 and all(len(line) <= 100 for line in result.output.splitlines())
    for option in ("--data", "--budget", "--objective", "--max-tokens-fit", "--seed", "--threads", "--dry-run"):
        assert option in result.output
