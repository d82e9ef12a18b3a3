"""Stage II (arXiv 2510.25741): fits the exit gate of a frozen model to the gain of further loops. Pure NumPy.

The target of continuing is w = sigmoid(50 (I - 0.005)) for an improvement I >= 0 of the token's loss; the objective is
the binary cross-entropy between 1 - lambda_r and w, averaged over loops and tokens. Three definitions of I:

    published   lambda_r against the gain *into* loop r, r = 2..R; lambda_1 is not fitted
    look-ahead  lambda_r against the gain from r to r + 1, r = 1..R-1, which also fits lambda_1
    horizon     lambda_r against the best gain from r to any later loop: a hard token may gain nothing in one loop

This is logistic regression in C + 1 parameters shared by all loops: convex, solved by L-BFGS from the current gate on
standardised features, which are not stored. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.errors import NoGateError, RequestError
from ouro_edge.fitting.gate_features import Features
from ouro_edge.fitting.lbfgs import minimise

Objective = Literal["look-ahead", "published", "horizon"]
OBJECTIVES: tuple[Objective, ...] = ("look-ahead", "published", "horizon")
_SLOPE, _LEAST_GAIN = 50.0, 0.005
_PRIOR_LOGIT_CHANGE = 3.0  # standard deviation of the prior on the change of a typical state's logit
_CHUNK_ROWS = 512  # rows converted to float64 at a time

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted gate, with the objective before and after fitting."""

    gate: FittedGate
    before: float  # cross-entropy with the old gate, on the features used for fitting
    after: float
    iterations: int


def original_gate(bundle: Bundle) -> FittedGate:
    """The checkpoint's gate, from the bundle's weights. NoGateError when it has none."""
    if not bundle.config.has_gate:
        raise NoGateError(f"{bundle.path} has no exit gate to fit")
    return FittedGate(bundle.values("exit_gate.weight")[0], float(bundle.values("exit_gate.bias")[0]))


def gate_logits(hidden: Array, gate: FittedGate) -> Vector:
    """Gate logits [N, R] of hidden states [R, N, C]."""
    weight = gate.weight.astype(np.float64)
    loops = [np.concatenate([chunk @ weight for chunk in _chunks(loop)]) for loop in hidden]
    return np.stack(loops, axis=1) + gate.bias


def targets(loss: Vector, objective: Objective) -> tuple[Vector, slice]:
    """Losses [R, N] -> target probability of continuing [R-1, N], and the loops that it applies to."""
    if objective not in OBJECTIVES:
        raise RequestError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    later = np.minimum.accumulate(loss[::-1])[::-1][1:] if objective == "horizon" else loss[1:]
    gain = np.maximum(0.0, loss[:-1] - later)
    taught = slice(1, None) if objective == "published" else slice(0, -1)
    return np.exp(-np.logaddexp(0.0, -_SLOPE * (gain - _LEAST_GAIN))), taught


def fit_to_features(features: Features, start: FittedGate, objective: Objective = "look-ahead") -> Fit:
    """The gate that minimises the objective on these features, with a weak prior towards `start`. Deterministic."""
    go_on, taught = targets(features.loss, objective)
    problem = StageTwo(features.hidden[taught], go_on, start)
    found = minimise(problem, problem.start)
    weight, bias = problem.gate(found.point)
    gate = FittedGate(weight.astype(np.float32), float(np.float32(bias)))
    before, after = (problem.cross_entropy(x) for x in (problem.start, found.point))
    return Fit(gate, before, after, found.iterations)


class StageTwo:
    """The objective as a function of the gate in standardised form: [C + 1], weights times the features' spread, and
    the gate's logit at the mean feature.

    The pull towards the start is a normal prior on these weights, with a width at which a typical state's logit moves
    by _PRIOR_LOGIT_CHANGE. It is as weak as one observation each, and decreases with the number of tokens.
    """

    def __init__(self, hidden: Array, go_on: Vector, start: FittedGate) -> None:
        self._hidden, self._go_on = hidden, go_on.reshape(-1)  # hidden [R-1, N, C], go_on [(R-1) N]
        rows, width = len(self._go_on), hidden.shape[-1]
        total, squares = np.zeros(width), np.zeros(width)
        for _, chunk in self._rows():
            total += chunk.sum(axis=0)
        self._mean = total / rows
        for _, chunk in self._rows():
            squares += np.square(chunk - self._mean).sum(axis=0)
        spread = np.sqrt(squares / rows)
        floor = 1e-3 * np.sqrt(np.mean(np.square(spread)))  # a constant feature must not get a huge weight
        self._spread = np.maximum(spread, floor) if floor > 0 else np.ones(width)
        self._pull = width / (_PRIOR_LOGIT_CHANGE**2 * rows)
        weight = start.weight.astype(np.float64)
        self.start = np.append(weight * self._spread, start.bias + self._mean @ weight)

    def gate(self, point: Vector) -> tuple[Vector, float]:
        """Weight [C] and bias of a point."""
        weight = point[:-1] / self._spread
        return weight, float(point[-1] - self._mean @ weight)

    def cross_entropy(self, point: Vector) -> float:
        """The objective without the prior."""
        return self(point)[0] - self._pulled(point)

    def __call__(self, point: Vector) -> tuple[float, Vector]:
        """Value and gradient [C + 1]."""
        weight, bias = self.gate(point)
        value, by_bias, by_weight = 0.0, 0.0, np.zeros_like(weight)
        for at, chunk in self._rows():
            logit = -(chunk @ weight + bias)  # of going on, 1 - lambda
            goal = self._go_on[at]
            value += float(np.sum(np.logaddexp(0.0, logit) - goal * logit))
            error = goal - np.exp(-np.logaddexp(0.0, -logit))
            by_weight += error @ chunk
            by_bias += float(np.sum(error))
        moved = point[:-1] - self.start[:-1]
        rows = len(self._go_on)
        gradient = np.append(
            (by_weight - self._mean * by_bias) / self._spread / rows + self._pull * moved, by_bias / rows
        )
        return value / rows + self._pulled(point), gradient

    def _pulled(self, point: Vector) -> float:
        return 0.5 * self._pull * float(np.sum(np.square(point[:-1] - self.start[:-1])))

    def _rows(self) -> Iterator[tuple[slice, Vector]]:
        """Slices of the targets, and their hidden rows [T, C] in float64."""
        done = 0
        for loop in self._hidden:
            for chunk in _chunks(loop):
                yield slice(done, done + len(chunk)), chunk
                done += len(chunk)


def _chunks(rows: Array) -> Iterator[Vector]:
    for i in range(0, len(rows), _CHUNK_ROWS):
        yield rows[i : i + _CHUNK_ROWS].astype(np.float64)
