"""benchmarks/policies.py and benchmarks/kv_kinds.py on a few questions: that they count what they say they count."""

from __future__ import annotations

import re

import kv_kinds
import nano
import numpy as np
import policies
import pytest

import ouro_edge
from ouro_edge.runtime.exits.parse import exit_from_options


@pytest.fixture(scope="module")
def model():
    with ouro_edge.load(None, kv="fp32", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def asked():
    questions = nano.questions(nano.DATA / "questions.test.jsonl", 1)
    return [q for q in questions if q["family"] in ("likes", "mixed") and q["hops"] in (1, 2)]


def row(model, asked, spelling: str, price: float = 0.5) -> policies.Row:
    return policies.measure(model, asked, spelling, policies.POLICIES[spelling], price)


def test_policies_are_what_the_command_line_makes_of_their_spelling(model):
    for spelling, policy in policies.POLICIES.items():
        if not spelling.startswith("--"):
            continue
        words = dict(re.findall(r"(--\S+) (\S+)", spelling))
        threshold, budget, loops = (words.get(name) for name in ("--exit-threshold", "--loop-budget", "--loops"))
        made = exit_from_options(
            exit=words.get("--exit"),
            exit_threshold=float(threshold) if threshold else None,
            loops=int(loops) if loops else None,
            loop_budget=float(budget) if budget else None,
            default=model.default_exit(),
        )
        assert made == policy, spelling


def test_a_fixed_depth_costs_its_loops_and_one_call_of_the_head(model, asked):
    two = row(model, asked, "--loops 2")
    assert (two.depth, two.loops, two.prompt_loops, two.heads, two.cost) == (2, 2, 2, 1, 2.5)


@pytest.mark.parametrize("spelling", ["--exit confidence:0.9", "--exit agreement"])
def test_rules_that_look_at_the_head_pay_for_every_loop(model, asked, spelling):
    looked = row(model, asked, spelling)
    assert looked.heads == pytest.approx(looked.depth) and looked.depth > 1


def test_a_floor_saves_calls_of_the_head(model, asked):
    floored = row(model, asked, "Agreement(floor=3)")
    assert floored.heads < floored.depth


def test_a_weighted_exit_and_a_budget_call_it_once(model, asked):
    assert row(model, asked, "--exit weighted").heads == 1
    budget = row(model, asked, "--exit-threshold 0.5 --loop-budget 2")
    assert budget.heads == 1 and budget.depth <= 2 < row(model, asked, "--exit-threshold 0.7").depth


def test_positions_that_are_caught_up_count(model, asked):
    shy = policies.measure(model, asked, "threshold", ouro_edge.ExitThreshold(0.5), 0.15)
    assert shy.loops >= shy.depth
    assert shy.cost == pytest.approx(shy.loops + 0.15)


def test_the_table_has_the_cheapest_first():
    rows = [policies.Row(name, 0.5, 1.0, cost, 1.0, 1.0, cost) for name, cost in (("dear", 4.0), ("cheap", 1.0))]
    lines = policies.table(rows).splitlines()
    assert lines[0].startswith("| policy | exact match |") and lines[0].count("|") == lines[1].count("|")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `cheap`", "| `dear`"]


def test_an_exact_cache_diverges_nowhere_and_a_shared_one_does(model, asked):
    right = [kv_kinds.right_answer(model, question) for question in asked]
    long = [kv_kinds.conversation(model, asked, 120)]
    assert len(long[0].prompt) + len(long[0].rest) <= 120 and not all(long[0].answers)
    exact = kv_kinds.examine(model, asked[:1], right, long)
    with ouro_edge.load(None, kv="fp32", kv_share="last", threads=1) as sharing:
        shared = kv_kinds.examine(sharing, asked[:1], right, long)
    assert exact.kv_bytes == 4 * shared.kv_bytes
    assert kv_kinds.divergence(exact.long, exact.long) == (0.0, 1.0)
    assert kv_kinds.divergence(exact.long, shared.long)[0] > 0.01
    for of_exact, of_shared in zip(exact.right, shared.right, strict=True):
        np.testing.assert_allclose(of_exact[0], of_shared[0], atol=1e-4)  # the prompt is processed exactly
    table = kv_kinds.table({"fp32": exact, "shared": shared}, right, long)
    assert "| memory of fp32's | 1/1 | 1/4 |" in table


def test_losses_are_of_answers_only():
    logs = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    text = kv_kinds.Text([0], [1, 0], [False, True])
    assert kv_kinds.loss([text], [logs]) == pytest.approx(np.log(4))
