"""Perplexity, divergence and exact match against direct computations with the NumPy reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from models import write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.cli import main
from ouro_edge.errors import NoTokenizerError, RequestError
from ouro_edge.evaluation.distances import log_softmax
from ouro_edge.evaluation.questions import Question, exact_match, read_questions
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.measure.quality import evaluate
from ouro_edge.measure.quality_chart import chart

TEXT = "the cat sat on the mat and the dog ran to the door. " * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("source"), vocab_size=320, max_position_embeddings=64)
    add_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "int4"):
        ouro_edge.export(checkpoint, folder / precision, precision=precision, calibration=None)
    return folder


def test_perplexity_and_divergence_are_those_of_a_direct_computation(checkpoint, exported):
    found = evaluate(exported / "int4", against=checkpoint, text=TEXT, windows=2)
    source = open_checkpoint(checkpoint)
    with ouro_edge.load(exported / "int4", kv="fp32", prefill_weights="none") as model:
        ids = model.tokenizer.encode_text(TEXT)
        losses, reference_losses, divergences, same = [], [], [], []
        for start in (0, 64):
            part = ids[start : start + 64]
            q = log_softmax(np.asarray(model.forward(part).logits))
            hidden = reference.run(source.config, source.weights, np.asarray(part)).hidden[-1]
            p = log_softmax(reference.head(source.weights, hidden))
            for at in range(32, 63):  # the first scored prediction is that of token 33
                losses.append(-q[at, part[at + 1]])
                reference_losses.append(-p[at, part[at + 1]])
                divergences.append(float((np.exp(p[at]) * (p[at] - q[at])).sum()))
                same.append(p[at].argmax() == q[at].argmax())
    assert found.tokens == 128 and [score.name for score in found.scores] == [f"depth {r}" for r in (1, 2, 3, 4)]
    assert found.best.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.best.other_perplexity == pytest.approx(np.exp(np.mean(reference_losses)), rel=1e-5)
    assert found.best.divergence.mean == pytest.approx(np.mean(divergences), rel=1e-3)
    assert found.best.divergence.median == pytest.approx(np.median(divergences), rel=1e-3)
    assert found.best.divergence.same_top == pytest.approx(np.mean(same))


def test_a_float_model_does_not_diverge_from_its_checkpoint(checkpoint, exported):
    found = evaluate(exported / "fp32", against=checkpoint, text=TEXT, windows=1)
    assert all(abs(score.divergence.mean) < 1e-6 for score in found.scores)
    assert found.best.divergence.same_top == 1


def test_a_checkpoint_is_measured_in_float32(checkpoint, exported):
    found, exact = (evaluate(path, text=TEXT, windows=1) for path in (checkpoint, exported / "fp32"))
    assert [s.name for s in found.scores] == [s.name for s in exact.scores]
    for mine, theirs in zip(found.scores, exact.scores, strict=True):
        assert mine.perplexity == pytest.approx(theirs.perplexity, rel=1e-5)
    with pytest.raises(RequestError, match="is a checkpoint, which is only computed on a text"):
        evaluate(checkpoint, text=TEXT, windows=1, exits=["depth:2"])


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path):
    bare = write_checkpoint(tmp_path / "bare", vocab_size=320, max_position_embeddings=64)
    with pytest.raises(NoTokenizerError, match=r"has no tokenizer\.json"):
        evaluate(bare, text=TEXT)


def test_an_exit_rule_has_a_line_of_its_own(exported):
    found = evaluate(exported / "fp32", against=exported / "fp32", text=TEXT, windows=1, exits=["depth:2", "full"])
    second, fourth = found.scores[-2:]
    assert (second.name, second.depth, fourth.depth) == ("depth:2", 2, 4)
    assert second.perplexity == pytest.approx(found.scores[1].perplexity)
    assert fourth.divergence.mean == pytest.approx(0, abs=1e-6) and second.divergence.mean > 1e-3


def test_exact_match_counts_the_answers_of_greedy_decoding(tmp_path):
    root = Path(__file__).parents[2]
    ouro_edge.export(root / "training" / "Ouro-nano", tmp_path / "nano", precision="fp32", calibration=None)
    questions = read_questions(root / "benchmarks" / "nano" / "questions.test.jsonl")[::120]
    with ouro_edge.load(tmp_path / "nano", kv="fp32", prefill_weights="none") as model:
        expected = []
        for loop in range(1, 5):
            right = 0
            for question in questions:
                messages = [{"role": "user", "content": question.prompt}]
                *_, done = model.chat(messages, exit=ouro_edge.FixedDepth(loop), max_tokens=48,
                                      sampler=ouro_edge.Sampler())  # fmt: skip
                right += done.text == question.answer
            expected.append(right / len(questions))
        assert exact_match(model, questions) == expected
    assert 0 < expected[0] < expected[-1]


def test_questions_are_read_and_bad_lines_are_named(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "a?", "answer": "b"}\n\n{"prompt": "c?", "answer": "d", "hops": 2}\n')
    assert read_questions(file) == [Question("a?", "b"), Question("c?", "d")]
    assert read_questions(file, 1) == [Question("a?", "b")]
    for line in ("{", "3", '{"prompt": "x"}', '{"prompt": "x", "answer": ""}'):
        file.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
        with pytest.raises(RequestError, match="line 2: expected an object"):
            read_questions(file)
    file.write_text("")
    with pytest.raises(RequestError, match="no questions"):
        read_questions(file)


def test_the_command_prints_a_table_or_json_and_draws_a_chart(checkpoint, exported, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    common = ["eval", str(exported / "int4"), "--against", str(checkpoint), "--text", str(text), "--windows", "1"]
    table = CliRunner().invoke(main, common)
    assert table.exit_code == 0 and "perplexity" in table.output and "same top" in table.output
    assert len(table.output.splitlines()) == 6
    picture = tmp_path / "chart.svg"
    result = CliRunner().invoke(main, [*common, "--json", "--chart", str(picture), "--exit", "depth:2"])
    record = json.loads(result.output)
    assert [row["name"] for row in record["scores"]] == ["depth 1", "depth 2", "depth 3", "depth 4", "depth:2"]
    assert picture.read_text().count("<circle") == 5


def test_refusals(exported, checkpoint, tmp_path):
    with pytest.raises(RequestError, match="expected at least a window of 64"):
        evaluate(exported / "fp32", text="short")
    other = write_checkpoint(tmp_path / "other", vocab_size=330, max_position_embeddings=64)
    with pytest.raises(RequestError, match="vocab_size is 320 here and 330 there"):
        evaluate(exported / "fp32", against=other, text=TEXT)


def test_the_chart_names_the_model(exported):
    found = evaluate(exported / "fp32", text=TEXT, windows=1)
    assert "perplexity" in chart(found) and found.model in chart(found)
