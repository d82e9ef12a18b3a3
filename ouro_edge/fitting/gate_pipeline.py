"""Fits the exit gate of an exported model to text: lines -> pieces -> features -> a gate -> what it gains.

A fifth of the lines is held out: the comparison with the checkpoint's own gate, and the threshold for a budget, come
from them. Nothing is written until `GateFit.write`, which stores the gate beside the model and leaves that as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.fitting.gate_data import count, draw, read_lines
from ouro_edge.fitting.gate_features import MOST_BYTES, Features, bytes_per_position, collect, window
from ouro_edge.fitting.gate_fit import OBJECTIVES, Objective, fit_to_features, gate_logits, original_gate
from ouro_edge.fitting.gate_tradeoff import Comparison, choose_threshold, compare
from ouro_edge.runtime.open_model import open_model
from ouro_edge.system.cache_dir import cache_directory
from ouro_edge.system.progress import Progress

_MIN_FITTED_TOKENS, _MIN_HELD_OUT_TOKENS = 400, 100  # tokens
_MAX_FITTED_TOKENS = 20000


@dataclass(frozen=True, slots=True)
class GateFit:
    """A gate that was fitted to a model, and what it gains."""

    bundle: Bundle
    gate: FittedGate  # with the threshold for the budget, None without one, and a report for people
    tokens: tuple[int, int]  # that it was fitted on, and that were held out
    cross_entropy: tuple[float, float]  # of the objective on the text fitted on: with the checkpoint's gate, with this
    iterations: int
    comparison: Comparison  # on the text that was held out

    def write(self) -> Path:
        """Store the gate beside the model, in place of an earlier one; returns the file. Errors: `check_writable`."""
        check_writable(self.bundle)
        return write_gate(self.bundle, self.gate)


def fit_gate(
    model: str | os.PathLike[str] | Bundle,
    data: str | os.PathLike[str],
    *,
    budget: float | None = None,
    objective: Objective = "look-ahead",
    max_tokens_fit: int = _MAX_FITTED_TOKENS,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GateFit:
    """Fit the exit gate of an exported model to text like that which it will see.

    Args:
        model: An exported directory, or one that is open.
        data: A JSONL file of objects with "text", "messages", "prompt" and "answer", or "ids".
        budget: Choose the exit threshold with this mean depth, 1 to R loops, on the text that is held out.
        objective: The gain that the gate learns: of the next loop ("look-ahead"), of the loop just made ("published"),
            or of the best later one ("horizon").
        max_tokens_fit: Fit on at most this many tokens, fewer where their features would take more than 512 MiB.
        seed: Which lines are drawn when there are more.
        threads: CPU threads. Default: as for `load`.
        progress: Called with positions done and positions in all while the model reads the text.

    Raises:
        RequestError: An argument is not allowed, the data cannot be read or is too short, or the model has one loop.
        NoGateError: The model has no exit gate.
        BundleError: `model` is not an exported directory, or is damaged.
    """
    bundle = model if isinstance(model, Bundle) else open_bundle(Path(model))
    old = original_gate(bundle)
    _check(bundle, budget, objective, max_tokens_fit, seed)
    file = Path(data)
    features, tokens = _read_features(bundle, file, max_tokens_fit, seed, threads, progress)
    held_out = features.part(tokens[0], sum(tokens))
    fit = fit_to_features(features.part(0, tokens[0]), old, objective)
    new_logits = gate_logits(held_out.hidden, fit.gate)
    comparison = compare(held_out, gate_logits(held_out.hidden, old), new_logits, budget)
    report = {
        "data": file.name, "objective": objective, "seed": seed, "tokens_fitted": tokens[0],
        "tokens_held_out": tokens[1], "budget": budget, "cross_entropy": [fit.before, fit.after],
        **comparison.to_dict(),
    }  # fmt: skip
    threshold = None if budget is None else choose_threshold(new_logits, budget)
    gate = FittedGate(fit.gate.weight, fit.gate.bias, threshold, report)
    return GateFit(bundle, gate, tokens, (fit.before, fit.after), fit.iterations, comparison)


def check_writable(bundle: Bundle) -> None:
    """RequestError where a fitted gate would be lost or shared: in the cache and in the installed package.

    BundleError where the directory is read-only.
    """
    path = bundle.path.resolve()
    for owner, root in (("the cache", cache_directory()), ("the installed package", Path(__file__).parents[1])):
        if path.is_relative_to(root.resolve()):
            raise RequestError(f"{bundle.path} belongs to {owner}: copy it, or make your own with ouro-edge export")
    if not os.access(path, os.W_OK):
        raise BundleError(f"{bundle.path} cannot be written to: copy the model to a directory of your own")


def _check(bundle: Bundle, budget: float | None, objective: str, max_tokens_fit: int, seed: int) -> None:
    """Everything that can be refused before the model is loaded."""
    loops = bundle.config.loops
    if loops == 1:
        raise RequestError(f"{bundle.path} has one loop, so there is no depth to choose")
    if objective not in OBJECTIVES:
        raise RequestError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    if budget is not None and not (isinstance(budget, (int, float)) and 1.0 <= budget <= loops):
        raise RequestError(f"budget is {budget!r}; expected a mean depth from 1 to {loops}, this model's loops")
    if type(max_tokens_fit) is not int or max_tokens_fit < _MIN_FITTED_TOKENS:
        least = _MIN_FITTED_TOKENS
        raise RequestError(f"max_tokens_fit is {max_tokens_fit!r}; expected a whole number of at least {least}")
    if type(seed) is not int or seed < 0:
        raise RequestError(f"seed is {seed!r}; expected a whole number, 0 or more")


def _read_features(
    bundle: Bundle, file: Path, max_tokens_fit: int, seed: int, threads: int | None, progress: Progress | None
) -> tuple[Features, tuple[int, int]]:
    """The features of the tokens to fit on, then of those held out, and how many there are of each."""
    lines = read_lines(file)
    room = min(max_tokens_fit, MOST_BYTES // bytes_per_position(bundle.config) * 4 // 5)
    with open_model(bundle, threads=threads, kv="fp32", gate="original") as model:
        fitted, held_out = draw(
            lines, model, window=window(bundle.config), most_fitted=room,
            most_held_out=max(room // 4, _MIN_HELD_OUT_TOKENS), seed=seed, name=str(file),
        )  # fmt: skip
        tokens = count(fitted), count(held_out)
        if tokens[0] < _MIN_FITTED_TOKENS or tokens[1] < _MIN_HELD_OUT_TOKENS:
            raise RequestError(f"{file} gives {tokens[0]} tokens to fit on and {tokens[1]} held out; expected at least "
                               f"{_MIN_FITTED_TOKENS} and {_MIN_HELD_OUT_TOKENS}: give more lines")  # fmt: skip
        return collect(model, [*fitted, *held_out], progress), tokens
