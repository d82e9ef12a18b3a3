"""The reinforcement learning example: sampled depths, the gradient, and a reward that rises."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ouro_edge
from ouro_edge.bundle.directory import open_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rl():
    """The module learn_depth, whose directory is not a package."""
    sys.path.insert(0, str(ROOT / "examples" / "rl"))
    try:
        yield importlib.import_module("learn_depth")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def questions(rl):
    return rl.read(rl.TRAIN, 40)


@pytest.fixture(scope="module")
def worker(rl):
    return rl.RolloutWorker()


def with_gate(rl, worker, tmp_path, weight, bias):
    gate = rl.Gate(np.asarray(weight, np.float64), bias)
    gate.save(tmp_path / "gate.json")
    worker.load_gate(str(tmp_path / "gate.json"))
    return gate


def test_decisions_are_those_that_led_to_the_depths(rl, worker, questions, tmp_path):
    with_gate(rl, worker, tmp_path, np.zeros(128), 0.0)
    groups = worker.rollouts([(i, q["prompt"]) for i, q in enumerate(questions[:6])], 4, (0, 0))
    depths = set()
    for answer in (answer for group in groups for answer in group):
        decisions = [[False] * (depth - 1) + [True] if depth < 4 else [False] * 3 for depth in answer.depths]
        assert answer.stopped.tolist() == [stop for token in decisions for stop in token]
        assert answer.hidden.shape == (len(answer.stopped), 128)
        assert len(answer.logprobs) == len(answer.token_ids) == len(answer.depths)
        depths |= set(answer.depths)
    assert depths == {1, 2, 3, 4}


@pytest.mark.parametrize(("bias", "depth"), [(-40.0, 4), (40.0, 1)])
def test_a_certain_gate_gives_the_answer_of_a_fixed_depth(rl, worker, questions, bias, depth, tmp_path):
    with_gate(rl, worker, tmp_path, np.zeros(128), bias)
    asked = questions[:5]
    sampled = worker.rollouts([(i, q["prompt"]) for i, q in enumerate(asked)], 1, (0, 0))
    assert [right for right, _ in worker.evaluate(asked)] == [right for right, _ in worker.evaluate(asked, depth)]
    with ouro_edge.load(threads=1) as model:
        for question, [answer] in zip(asked, sampled, strict=True):
            messages = [{"role": "user", "content": question["prompt"]}]
            rule, greedy = ouro_edge.FixedDepth(depth), ouro_edge.Sampler()
            *tokens, done = model.chat(messages, exit=rule, max_tokens=12, sampler=greedy)
            assert answer.text == done.text and answer.depths == [depth] * len(tokens)


def test_results_depend_on_seed_and_question_but_not_on_the_worker(rl, worker, questions, tmp_path):
    with_gate(rl, worker, tmp_path, np.zeros(128), 0.0)
    numbered = [(i, q["prompt"]) for i, q in enumerate(questions[:6])]
    whole = worker.rollouts(numbered, 3, (5, 1))
    part = rl.RolloutWorker().rollouts(numbered[3:], 3, (5, 1))
    other = worker.rollouts(numbered, 3, (6, 1))

    def depths(groups):
        return [[answer.depths for answer in group] for group in groups]

    assert depths(whole[3:]) == depths(part) and depths(whole) != depths(other)
    assert whole[4][1].logprobs == pytest.approx(part[1][1].logprobs, abs=1e-5)


def test_the_gradient_is_that_of_the_log_probability(rl, worker, questions, tmp_path):
    random = np.random.default_rng(1)
    gate = with_gate(rl, worker, tmp_path, random.normal(0, 0.05, 128), -0.3)
    [group] = worker.rollouts([(0, questions[0]["prompt"])], 4, (0, 0))
    rewards = [0.7, -0.1, 0.2, 0.4]

    def objective(parameters):
        changed = rl.Gate(parameters[:-1], float(parameters[-1]))
        total = 0.0
        for answer, value in zip(group, np.array(rewards) - 0.3, strict=True):
            stop = changed.probability(answer.hidden)
            total += value * np.log(np.where(answer.stopped, stop, 1 - stop)).sum()
        return total / 4

    gradient, at = rl.policy_gradient(group, rewards, gate), np.append(gate.weight, gate.bias)
    for place in (0, 17, 90, 128):
        step = np.zeros(129)
        step[place] = 1e-5
        numeric = (objective(at + step) - objective(at - step)) / 2e-5
        assert gradient[place] == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_a_few_steps_raise_the_reward(rl, questions, monkeypatch):
    monkeypatch.setattr(rl, "GROUP_QUESTIONS", 12)
    workers = rl.Workers(None, 0)
    records = list(rl.train(workers, questions, questions[:20], 12, seed=0, rate=0.01))
    rewards = [record["reward"] for record in records[:-1]]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.05
    assert records[0]["gate"].bias == 0 and len(rewards) == 12 and "held_out" in records[-1]


def test_a_gate_of_another_width_is_refused_and_that_of_a_model_is_read(rl, worker, tmp_path):
    with pytest.raises(ouro_edge.RequestError, match="has 3 weights; this model's gate has 128"):
        with_gate(rl, worker, tmp_path, np.zeros(3), 0.0)


def test_a_written_gate_is_used_by_the_model(tmp_path):
    model = tmp_path / "nano"
    ouro_edge.export(ROOT / "training" / "Ouro-nano", model, precision="int8")
    command = [sys.executable, str(ROOT / "examples/rl/learn_depth.py"), "--model", str(model), "--steps", "1",
               "--held-out", "4", "--write"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "step 1: accuracy" in done.stdout, done.stderr
    gate = open_bundle(model).fitted_gate()
    assert gate is not None and gate.threshold == 0.5 and np.abs(gate.weight).max() == pytest.approx(0.01, rel=1e-3)
    refused = subprocess.run([*command[:2], "--write"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "--write needs --model" in refused.stderr


@pytest.mark.ray
def test_ray_actors_give_the_same_curve():
    python = os.environ.get("OURO_EDGE_RAY_PYTHON") or pytest.skip("OURO_EDGE_RAY_PYTHON is not set")
    shown = []
    for more in ([], ["--ray", "2"]):
        command = [python, str(ROOT / "examples/rl/learn_depth.py"), "--steps", "2", "--held-out", "8", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        shown.append([line for line in done.stdout.splitlines() if line.startswith(("step", "fixed", "the model"))])
    assert shown[0] == shown[1] and len(shown[0]) == 7
