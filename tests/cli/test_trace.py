"""A trace tells what generation did, and its page is safe to open."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from models import oracle, write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.cli import main
from ouro_edge.evaluation.trace import trace
from ouro_edge.evaluation.trace_page import page


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    root = tmp_path_factory.mktemp("talker")
    add_tokenizer(write_checkpoint(root / "checkpoint", vocab_size=300))
    result = CliRunner().invoke(main, ["export", str(root / "checkpoint"), str(root / "model"), "-p", "fp32"])
    assert result.exit_code == 0
    return root / "model"


def test_the_lens_is_the_head_on_every_loop(checkpoint_of, bundle_of):
    checkpoint, ids = checkpoint_of(), [5, 17, 3, 88, 41]
    logits, _ = oracle(checkpoint, ids)
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        traced = trace(model, ids, start=2, exit=ouro_edge.ExitThreshold(0.5))
        depths = model.forward(ids, exit=ouro_edge.ExitThreshold(0.5)).depth
    assert [t.id for t in traced] == ids[2:]
    for t, token in enumerate(traced, start=1):  # position t predicts token t + 1
        assert token.depth == depths[t]
        assert [c[0][0] for c in token.loops] == logits[:, t].argmax(axis=1).tolist()
        share = np.exp(logits[3, t] - logits[3, t].max())
        assert token.loops[3][0][2] == pytest.approx((share / share.sum()).max(), abs=1e-3)
        assert sum(token.exit_probs) == pytest.approx(1.0, abs=1e-6)


def test_an_answer_may_fill_the_context(talker):
    shown = CliRunner().invoke(main, ["trace", str(talker), "--raw", "--ctx", "12", "-p", "hello"])
    assert shown.exit_code == 0, shown.output
    ran = json.loads(
        CliRunner().invoke(main, ["run", str(talker), "--raw", "--ctx", "12", "-p", "hello", "--json"]).stdout
    )
    assert len(shown.stdout.splitlines()) == 1 + len(ran["ids"])


def test_table_and_depths_agree_with_run(talker):
    options = [str(talker), "-p", "hello", "-n", "6", "--exit-threshold", "0.5"]
    run = json.loads(CliRunner().invoke(main, ["run", *options, "--json"]).stdout)
    shown = CliRunner().invoke(main, ["trace", *options])
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 0 and "loop 4" in lines[0]
    assert len(lines) == 1 + len(run["ids"])
    with ouro_edge.load(talker) as model:
        prompt = model.tokenizer.encode(model.render([{"role": "user", "content": "hello"}]))
        traced = trace(model, prompt + run["ids"], start=len(prompt), exit=ouro_edge.ExitThreshold(0.5))
    assert [token.depth for token in traced] == run["depth"]


def test_the_page_stands_alone_and_escapes(talker, tmp_path):
    result = CliRunner().invoke(
        main,
        ["trace", str(talker), "-p", "<script>x</script>", "--whole", "-n", "3", "--html", str(tmp_path / "t.html")],
    )
    assert result.exit_code == 0
    text = (tmp_path / "t.html").read_text()
    assert "<script" not in text and "http" not in text and "&lt;script&gt;" in text
    assert text.count("<tr>") > 10
    assert page([], "empty").startswith("<!doctype html>")
    missing = CliRunner().invoke(
        main, ["trace", str(talker), "-p", "x", "-n", "1", "--html", str(tmp_path / "no" / "t")]
    )
    assert missing.exit_code == 1 and missing.stderr.count("\n") == 1


def test_a_budget_is_no_matter_of_single_tokens(talker):
    result = CliRunner().invoke(main, ["trace", str(talker), "-p", "hello", "--loop-budget", "2"])
    assert result.exit_code == 1 and "omit it" in result.stderr


def test_the_page_has_the_colours_of_the_chat_page_and_a_whole_heading(talker, tmp_path):
    prompt = "Which of these puzzles about people and their friends is\nthe most difficult one to answer of all"
    out = tmp_path / "t.html"
    result = CliRunner().invoke(main, ["trace", str(talker), "--raw", "-p", prompt, "-n", "3", "--html", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    assert "<h1>checkpoint: Which of these puzzles about people and their friends is the…</h1>" in text
    assert "--paper: light-dark(" in text and "color-scheme: light dark" in text
    assert "<div class=frame><table>" in text and ".frame{overflow-x:auto" in text
    assert 'style="--d:0"' in text and 'style="--d:1"' in text
