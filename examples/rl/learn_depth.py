"""Variable-depth reinforcement learning: an exit gate learns from rewards alone how many loops a token needs.

    python examples/rl/learn_depth.py --png curve.png            # in this process
    python examples/rl/learn_depth.py --ray 2 --png curve.png    # the same numbers, with two Ray actors

Every answer is rewarded with 1 if it is exactly right, minus a cost per loop (mean over its tokens). The samples of one
question form a group; an answer's advantage is its reward minus the group's mean (as in GRPO, without division by the
deviation, which would change what is maximised). Only the gate's C + 1 numbers are trained, with Adam, in NumPy; they
begin at zero, so that each loop is the last with probability 1/2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rollouts import Gate, Rollout, RolloutWorker

from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate

DATA = Path(__file__).parents[2] / "benchmarks" / "nano"
TRAIN, TEST = DATA / "questions.validation.jsonl", DATA / "questions.test.jsonl"
GROUP_QUESTIONS, GROUP_SAMPLES = 24, 8  # per step
COST = 0.08  # of a loop
DECAY_1, DECAY_2 = 0.9, 0.99  # Adam
EVERY = 10  # steps between two evaluations


def reward(answer: Rollout, right: str, cost: float = COST) -> float:
    """1 for an exact match, minus `cost` times the mean number of loops of a token."""
    return float(answer.text == right) - cost * float(np.mean(answer.depths))


def policy_gradient(group: Sequence[Rollout], rewards: Sequence[float], gate: Gate) -> np.ndarray:
    """Gradient [C + 1] of the expected reward by weight and bias, from the answers to one question.

    The probability of an answer's depths is the product of its decisions; d log p / d logit = stopped - probability.
    """
    gradient = np.zeros(len(gate.weight) + 1)
    for answer, value in zip(group, np.array(rewards) - np.mean(rewards), strict=True):
        error = answer.stopped - gate.probability(answer.hidden)
        gradient[:-1] += value * (error @ answer.hidden.astype(np.float64))
        gradient[-1] += value * error.sum()
    return gradient / len(group)


class Adam:
    """Gradient ascent with Adam (arXiv 1412.6980)."""

    def __init__(self, size: int, rate: float) -> None:
        self.rate = rate
        self.mean, self.square, self.steps = np.zeros(size), np.zeros(size), 0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """What to add to the parameters."""
        self.steps += 1
        self.mean += (1 - DECAY_1) * (gradient - self.mean)
        self.square += (1 - DECAY_2) * (gradient**2 - self.square)
        mean = self.mean / (1 - DECAY_1**self.steps)
        return self.rate * mean / (np.sqrt(self.square / (1 - DECAY_2**self.steps)) + 1e-8)


class Workers:
    """Rollout workers: one in this process, or Ray actors. Results do not depend on their number."""

    def __init__(self, model: str | None, actors: int) -> None:
        if actors:
            import ray

            ray.init(ignore_reinit_error=True, log_to_driver=False)
            remote = ray.remote(RolloutWorker).options(num_cpus=1)
            self._actors = [remote.remote(model) for _ in range(actors)]
            self._call = lambda worker, name, *args: ray.get(getattr(worker, name).remote(*args))
        else:
            self._actors = [RolloutWorker(model)]
            self._call = lambda worker, name, *args: getattr(worker, name)(*args)

    def all(self, name: str, *args: Any) -> list[Any]:
        """Call a method of every worker."""
        with ThreadPoolExecutor(len(self._actors)) as pool:
            return list(pool.map(lambda worker: self._call(worker, name, *args), self._actors))

    def split(self, name: str, items: Sequence[Any], *args: Any) -> list[Any]:
        """Call a method that returns a list with parts of `items`; returns the results in the order of `items`."""
        count = len(self._actors)
        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(lambda i: self._call(self._actors[i], name, items[i::count], *args), range(count)))
        return [parts[i % count][i // count] for i in range(len(items))]


def measure(workers: Workers, questions: list[dict[str, Any]], depth: int | None = None) -> dict[str, float]:
    """Accuracy, mean depth and reward on questions, at a fixed depth or with the gate."""
    found = np.array(workers.split("evaluate", questions, depth), float)
    accuracy, loops = found.mean(axis=0)
    return {"accuracy": accuracy, "depth": loops, "reward": accuracy - COST * loops}


def train(
    workers: Workers,
    questions: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    steps: int,
    seed: int = 0,
    rate: float = 0.01,
) -> Iterator[dict[str, Any]]:
    """Train; yields a record per step, with the gate, and every EVERY steps with its measure on `held_out`."""
    width = workers.all("width")[0]
    random, adam = np.random.default_rng(seed), Adam(width + 1, rate)
    parameters = np.zeros(width + 1)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "gate.json")
        for step in range(steps + 1):
            gate = Gate(parameters[:-1].copy(), float(parameters[-1]))
            gate.save(file)
            workers.all("load_gate", str(file))
            record: dict[str, Any] = {"step": step, "gate": gate}
            if step % EVERY == 0 or step == steps:
                record["held_out"] = measure(workers, held_out)
            if step < steps:
                chosen = random.choice(len(questions), GROUP_QUESTIONS, replace=False)
                asked = [(int(i), questions[i]["prompt"]) for i in chosen]
                groups = workers.split("rollouts", asked, GROUP_SAMPLES, (seed, step))
                values = [[reward(answer, questions[i]["answer"]) for answer in group]
                          for i, group in zip(chosen, groups, strict=True)]  # fmt: skip
                record["reward"] = float(np.mean(values))
                record["depth"] = float(np.mean([np.mean(answer.depths) for group in groups for answer in group]))
                gradient = np.mean([policy_gradient(g, v, gate) for g, v in zip(groups, values, strict=True)], axis=0)
                parameters = parameters + adam.step(gradient)
            yield record


def draw(records: list[dict[str, Any]], fixed: dict[int, dict[str, float]], out: Path) -> None:
    """The learning curve, beside fixed depths."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=150)
    trained = [record for record in records if "reward" in record]
    steps = [record["step"] for record in records if "held_out" in record]
    seen = {name: [r["held_out"][name] for r in records if "held_out" in r] for name in ("reward", "depth", "accuracy")}
    left.plot([r["step"] for r in trained], [r["reward"] for r in trained], color="tab:gray", lw=0.8,
              label="training, sampled depths")  # fmt: skip
    left.plot(steps, seen["reward"], "o-", ms=3, label="held out, gate at 0.5")
    for depth, result in fixed.items():
        left.axhline(result["reward"], ls=":", color="k", lw=0.8)
        left.text(steps[-1], result["reward"], f" depth {depth}", fontsize=7, va="center")
    left.set(xlabel="step", ylabel=f"reward (exact match - {COST} per loop)")
    left.legend(fontsize=7, loc="lower right")
    right.plot(seen["depth"], seen["accuracy"], ".-", lw=0.8, label="gate, by step")
    right.plot(seen["depth"][-1], seen["accuracy"][-1], "o", color="tab:blue")
    points = [(result["depth"], result["accuracy"]) for result in fixed.values()]
    right.plot(*zip(*points, strict=True), "kx:", label="fixed depth")
    right.set(xlabel="mean loops per token", ylabel="exact match, held out", ylim=(0, 1.02))
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out)


def read(file: Path, most: int | None) -> list[dict[str, Any]]:
    """Questions, every n-th where there are more than `most`."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return lines if most is None else lines[:: max(1, len(lines) // most)][:most]


def main() -> None:
    """Train on the validation questions of Ouro-nano, measure on its test questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.01, help="step size of Adam")
    parser.add_argument("--held-out", type=int, default=200, help="questions to measure on")
    parser.add_argument("--ray", type=int, default=0, metavar="ACTORS", help="use Ray actors")
    parser.add_argument("--png", type=Path, help="draw the learning curve")
    parser.add_argument("--model", help="an exported model; default: the built-in one")
    parser.add_argument("--write", action="store_true", help="store the gate in the model, as ouro-edge fit-gate does")
    options = parser.parse_args()
    if options.write and options.model is None:
        parser.error("--write needs --model: the built-in model belongs to the package")
    begin = time.monotonic()
    workers, held_out = Workers(options.model, options.ray), read(TEST, options.held_out)
    fixed = {depth: measure(workers, held_out, depth) for depth in range(1, 5)}
    for depth, result in fixed.items():
        print(f"fixed depth {depth}: accuracy {result['accuracy']:.3f}, reward {result['reward']:.3f}", flush=True)
    own = ", ".join(f"{name} {value:.3f}" for name, value in measure(workers, held_out, 0).items())
    print(f"the model's own rule: {own}", flush=True)
    records = []
    for record in train(workers, read(TRAIN, None), held_out, options.steps, options.seed, options.rate):
        records.append(record)
        if found := record.get("held_out"):
            figures = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"step {record['step']}: {figures}", flush=True)
    print(f"{time.monotonic() - begin:.0f} s")
    if options.write:
        gate = records[-1]["gate"]
        fitted = FittedGate(gate.weight.astype(np.float32), gate.bias, 0.5, {"objective": "examples/rl"})
        print(f"wrote {write_gate(open_bundle(Path(options.model)), fitted)}")
    if options.png:
        draw(records, fixed, options.png)


if __name__ == "__main__":
    main()
