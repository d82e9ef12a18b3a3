"""Answers at sampled depths, for training an exit gate: each comes with its log-probabilities, depths and decisions.

A worker takes new weights of the gate, or another model, by path. It needs no Ray; with Ray it becomes an actor:

    worker = ray.remote(RolloutWorker).options(num_cpus=1).remote()
    ray.get(worker.load_gate.remote("gate.json"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ouro_edge
from ouro_edge.runtime.exits.loop_states import LoopStates


@dataclass(frozen=True)
class Gate:
    """An exit gate: probability of stopping sigmoid(hidden @ weight + bias)."""

    weight: np.ndarray  # [C]
    bias: float

    def probability(self, hidden: np.ndarray) -> np.ndarray:
        """[T] of states [T, C]."""
        return 1.0 / (1.0 + np.exp(-(hidden.astype(np.float64) @ self.weight + self.bias)))

    def save(self, path: Path) -> None:
        """Write the file that `Gate.load` reads."""
        path.write_text(json.dumps({"weight": self.weight.tolist(), "bias": self.bias}))

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Read weight and bias; also from the exit_gate.json of an exported model."""
        data = json.loads(path.read_text())
        return cls(np.array(data["weight"], np.float64), float(data["bias"]))


class SampledDepth(ouro_edge.ExitPolicy):
    """Stops at random, with the probability of a gate, and records what it saw. For one generation."""

    def __init__(self, gate: Gate, random: np.random.Generator) -> None:
        self.gate, self.random = gate, random
        self.hidden: list[np.ndarray] = []  # [C] of each decision; none is made after the last loop
        self.stopped: list[bool] = []

    def stops(self, states: LoopStates) -> np.ndarray:
        stopped = self.random.random(len(states)) < self.gate.probability(states.hidden)
        self.hidden += list(states.hidden)
        self.stopped += stopped.tolist()
        return stopped


@dataclass(frozen=True)
class ThresholdDepth(ouro_edge.ExitPolicy):
    """The rule that a trained gate is used with: stop where the cumulative probability reaches the threshold."""

    gate: Gate
    threshold: float = 0.5

    def stops(self, states: LoopStates) -> np.ndarray:
        survival = np.ones(len(states))
        for loop in range(1, states.loop + 1):
            survival *= 1.0 - self.gate.probability(states[loop].hidden)
        return survival <= 1.0 - self.threshold


@dataclass(frozen=True)
class Rollout:
    """One answer; a decision was made for each token after each loop but the last."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    depths: list[int]
    hidden: np.ndarray = field(repr=False)  # [decisions, C], the states that were looked at
    stopped: np.ndarray = field(repr=False)  # [decisions], bool


class RolloutWorker:
    """A model that answers at depths sampled from a gate."""

    def __init__(self, model: str | None = None, threads: int = 1) -> None:
        self._threads = threads
        self.load_model(model)

    def load_model(self, path: str | None) -> None:
        """Replace the model: an exported directory, a checkpoint or a .gguf file; None: the built-in one."""
        self._model = ouro_edge.load(path, threads=self._threads)
        self._gate = Gate(np.zeros(self.width()), 0.0)

    def width(self) -> int:
        """C, the number of weights of a gate."""
        return self._model.config.hidden_size

    def load_gate(self, path: str) -> None:
        """Replace the weights of the gate. RequestError when their number is not the model's width."""
        gate, width = Gate.load(Path(path)), self.width()
        if gate.weight.shape != (width,):
            raise ouro_edge.RequestError(f"{path} has {gate.weight.size} weights; this model's gate has {width}")
        self._gate = gate

    def rollouts(
        self, questions: Sequence[tuple[int, str]], samples: int, seed: Sequence[int], max_tokens: int = 12
    ) -> list[list[Rollout]]:
        """`samples` greedy answers at sampled depths to each question, given with its number.

        The random numbers depend on `seed`, the question's number and the sample only, not on the worker.
        """
        groups = []
        for number, question in questions:
            sequence = self._model.new_sequence()  # the samples share what has been computed of the prompt
            group = []
            for sample in range(samples):
                rule = SampledDepth(self._gate, np.random.default_rng([*seed, number, sample]))
                text, tokens = self._ask(question, rule, max_tokens, sequence)
                hidden = np.array(rule.hidden, np.float32).reshape(-1, self.width())
                group.append(
                    Rollout(text, [t.id for t in tokens], [t.logprob for t in tokens], [t.depth for t in tokens],
                            hidden, np.array(rule.stopped, bool))
                )  # fmt: skip
            groups.append(group)
        return groups

    def evaluate(
        self, questions: Sequence[Mapping[str, Any]], depth: int | None = None, max_tokens: int = 12
    ) -> list[tuple[bool, float]]:
        """Whether each answer is right, and the mean depth of its tokens, with the gate at 0.5.

        Or at a fixed depth; 0 stands for the model's own rule.
        """
        rules = {None: ThresholdDepth(self._gate), 0: self._model.default_exit()}
        rule = rules[depth] if depth in rules else ouro_edge.FixedDepth(depth)
        found = []
        for question in questions:
            text, tokens = self._ask(question["prompt"], rule, max_tokens, self._model.new_sequence())
            found.append((text == question["answer"], float(np.mean([token.depth for token in tokens]))))
        return found

    def _ask(
        self, question: str, rule: ouro_edge.ExitPolicy, max_tokens: int, sequence: ouro_edge.TokenSequence
    ) -> tuple[str, list[ouro_edge.Token]]:
        messages = [{"role": "user", "content": question}]
        *tokens, done = self._model.chat(
            messages, exit=rule, max_tokens=max_tokens, sampler=ouro_edge.Sampler(), sequence=sequence, speculate=False
        )
        assert isinstance(done, ouro_edge.Done)
        return done.text, [token for token in tokens if isinstance(token, ouro_edge.Token)]
