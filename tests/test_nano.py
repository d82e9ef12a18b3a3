"""The model in the box: it loads without a name, answers what its card claims, and thinks deeper where it is harder."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner

import ouro_edge
from ouro_edge.bundle.directory import check_files, open_bundle
from ouro_edge.cli import main

QUESTIONS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "benchmarks" / "nano" / "questions.test.jsonl").read_text().splitlines()
]
PEOPLE = ("likes", "boss", "mixed")


@pytest.fixture(scope="module")
def nano():
    with ouro_edge.load() as model:
        yield model


def sample(family: str, hops: int, count: int = 12) -> list[dict[str, Any]]:
    return [q for q in QUESTIONS if q["family"] == family and q["hops"] == hops][:count]


def share_right(model, questions, policy) -> tuple[float, float]:
    """Exact matches and mean depth."""
    rights, depths = [], []
    for question in questions:
        messages = [{"role": "user", "content": question["prompt"]}]
        *tokens, done = model.chat(messages, exit=policy, max_tokens=48, sampler=ouro_edge.Sampler())
        rights.append(done.text == question["answer"])
        depths += [token.depth for token in tokens]
    return fmean(rights), fmean(depths)


def test_it_is_small_and_whole(nano):
    bundle = open_bundle(nano.text.path)
    check_files(bundle.path, bundle.manifest)
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 4_000_000
    assert (nano.config.model_type, nano.config.loops, nano.config.has_gate) == ("ouro", 4, True)


@pytest.mark.parametrize("family", PEOPLE[:2])
def test_loops_buy_reasoning(nano, family):
    """Questions of three hops: one loop is lost, four loops know."""
    questions = sample(family, 3, 20)
    shallow, _ = share_right(nano, questions, ouro_edge.FixedDepth(1))
    deep, _ = share_right(nano, questions, ouro_edge.FullDepth())
    assert deep >= 0.85 and shallow <= 0.5


def test_the_gate_spends_loops_where_they_are_needed(nano):
    policy = ouro_edge.ExitThreshold(0.5)
    easy, hard = ([q for f in PEOPLE[:2] for q in sample(f, hops, 10)] for hops in (1, 3))
    _, easy_depth = share_right(nano, easy, policy)
    _, hard_depth = share_right(nano, hard, policy)
    assert hard_depth > easy_depth + 0.3


@pytest.mark.parametrize("prompt", ["hello", "What can you do?", "What is the capital of Mongolia?"])
def test_it_says_what_it_is(nano, prompt):
    *_, done = nano.chat([{"role": "user", "content": prompt}], max_tokens=64)
    assert done.reason == "stop" and len(done.text) > 10


def test_commands_without_a_model_use_it():
    question = sample("boss", 2, 1)[0]
    result = CliRunner().invoke(main, ["run", "-p", question["prompt"]])
    assert result.exit_code == 0 and result.stdout.strip() == question["answer"]
    assert "Ouro-nano" in result.stderr and result.stderr.count("\n") == 1
    chat = CliRunner().invoke(main, ["chat"], input=question["prompt"] + "\n")
    assert chat.stdout.strip() == question["answer"]


def test_a_chat_shows_it_the_last_turn_only(nano):
    """It was trained on single turns."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello!"}]
    question = {"role": "user", "content": "What can you do?"}
    assert nano.render([*turns, question]) == nano.render([question])
