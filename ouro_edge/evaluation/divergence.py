"""Perplexity of a model on a text, and its divergence from another model, by depth and by exit rule.

The protocol is that of llama-perplexity: the text is cut into windows of 512 tokens without overlap, each window is run
on its own, and the predictions of its second half are scored, so that figures can be compared with llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch import reference
from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.evaluation.distances import kl_divergence, log_softmax
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.model import Model
from ouro_edge.system.progress import Progress

WINDOW = 512  # tokens; half of them are scored
_PIECE = 64  # rows of logits in float64 at a time


class States(Protocol):
    """What a divergence needs of a model."""

    @property
    def config(self) -> ModelConfig: ...

    def hidden(self, ids: Sequence[int]) -> Array:
        """State rows [R, T, W] after every loop."""
        ...

    def logits(self, hidden: Array) -> Array:
        """Logits [T, V] of state rows [T, W]."""
        ...


class LoadedModel:
    """A model that is loaded in the runtime."""

    def __init__(self, model: Model) -> None:
        self.model, self.config = model, model.config

    def hidden(self, ids: Sequence[int]) -> Array:
        return self.model.states(ids).hidden

    def logits(self, hidden: Array) -> Array:
        return np.asarray(self.model.logits(hidden))


class OriginalWeights:
    """Weights in float32, computed by the NumPy reference; layers are read from the file for every window."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self._weights, self.config = weights, config
        self._head: Array | None = None

    def hidden(self, ids: Sequence[int]) -> Array:
        return reference.run(self.config, self._weights, np.asarray(ids)).hidden

    def logits(self, hidden: Array) -> Array:
        if self._head is None:
            self._head = self._weights["head"]
        return reference.logits(self.config, {"head": self._head}, hidden)


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(other || model) in nats over all scored tokens, and how often both have the same most probable token."""

    mean: float
    median: float
    percentile_99: float
    same_top: float


@dataclass(frozen=True, slots=True)
class Score:
    """One line of an evaluation: a fixed depth or an exit rule."""

    name: str  # "depth 2" or the exit rule
    depth: float  # mean number of loops of the scored tokens
    perplexity: float
    divergence: Divergence | None  # None without a model to compare with
    other_perplexity: float | None  # that of the other model; None without one


@dataclass(slots=True)
class _Sums:
    losses: list[NDArray[np.float64]] = field(default_factory=list)
    other_losses: list[NDArray[np.float64]] = field(default_factory=list)
    kl: list[NDArray[np.float64]] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)

    def add(self, logits: Array, targets: NDArray[np.int64], other: Array | None, depth: float) -> None:
        self.depths.append(depth)
        for at in range(0, len(targets), _PIECE):
            piece = slice(at, min(len(targets), at + _PIECE))
            q = log_softmax(logits[piece])
            self.losses.append(-q[np.arange(len(q)), targets[piece]])
            if other is not None:
                p = log_softmax(other[piece])
                self.other_losses.append(-p[np.arange(len(p)), targets[piece]])
                self.kl.append(kl_divergence(p, q))
                self.same.append(p.argmax(axis=1) == q.argmax(axis=1))

    def score(self, name: str) -> Score:
        divergence = other = None
        if self.kl:
            other = _perplexity(self.other_losses)
            kl = np.concatenate(self.kl)
            divergence = Divergence(
                float(kl.mean()),
                float(np.median(kl)),
                float(np.quantile(kl, 0.99)),
                float(np.concatenate(self.same).mean()),
            )
        return Score(name, float(np.mean(self.depths)), _perplexity(self.losses), divergence, other)


def _perplexity(losses: list[NDArray[np.float64]]) -> float:
    return float(np.exp(np.concatenate(losses).mean()))


def token_windows(ids: Sequence[int], config: ModelConfig, most: int | None = None) -> list[list[int]]:
    """At most `most` windows of the text's tokens. RequestError when the text is shorter than one window."""
    length = min(WINDOW, config.max_positions)
    if most is not None and most < 1:
        raise RequestError(f"windows is {most}; expected at least 1")
    count = len(ids) // length if most is None else min(most, len(ids) // length)
    if not count:
        raise RequestError(f"the text has {len(ids)} tokens; expected at least a window of {length}")
    return [list(ids[i * length : (i + 1) * length]) for i in range(count)]


def compare(
    model: Model | States,
    windows: Sequence[Sequence[int]],
    other: States | None = None,
    exits: Iterable[tuple[str, ExitPolicy]] = (),
    progress: Progress | None = None,
) -> list[Score]:
    """Scores at every depth, and with every exit rule, whose tokens are compared with the other model at full depth.

    A model that was trained to be read after all loops only has one depth. Every token sees those before it only.

    RequestError when the models differ in vocabulary or loops, and for an exit rule with a model that is not loaded.
    """
    rules, loaded = list(exits), model if isinstance(model, Model) else None
    own = model if not isinstance(model, Model) else LoadedModel(model)
    if rules and loaded is None:
        raise RequestError("exit rules need a loaded model")
    depths = own.config.depths
    if other is not None:
        for name in ("vocab_size", "loops"):
            mine, theirs = getattr(own.config, name), getattr(other.config, name)
            if mine != theirs:
                raise RequestError(f"the models cannot be compared: {name} is {mine} here and {theirs} there")
    sums = [_Sums() for _ in (*depths, *rules)]
    for number, ids in enumerate(windows):
        if progress:
            progress(number, len(windows), "text")
        half = len(ids) // 2
        scored = slice(half, len(ids) - 1)
        targets = np.asarray(ids[half + 1 :], np.int64)
        hidden = own.hidden(ids)
        theirs = None if other is None else other.hidden(ids)
        logits: Array | None = None
        for depth, total in zip(depths, sums, strict=False):
            if other is not None and theirs is not None:
                logits = other.logits(theirs[depth - 1, scored])
            total.add(own.logits(hidden[depth - 1, scored]), targets, logits, depth)
        for total, (_, rule) in zip(sums[len(depths) :], rules, strict=True):
            assert loaded is not None
            run = loaded.forward(list(ids), exit=rule)
            total.add(np.asarray(run.logits)[scored], targets, logits, float(run.depth[scored].mean()))
    if progress:
        progress(len(windows), len(windows), "")
    names = [f"depth {depth}" for depth in depths] + [name for name, _ in rules]
    return [total.score(name) for total, name in zip(sums, names, strict=True)]


def to_dict(score: Score) -> dict[str, Any]:
    """A JSON-ready dictionary."""
    record: dict[str, Any] = {"name": score.name, "depth": score.depth, "perplexity": score.perplexity}
    if (found := score.divergence) is not None:
        record["kl"] = {"mean": found.mean, "median": found.median, "percentile_99": found.percentile_99}
        record["same_top"] = found.same_top
        record["other_perplexity"] = score.other_perplexity
    return record
