"""`ouro-edge fit-gate`: fit the exit gate of an exported model to your own text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ouro_edge.errors import BundleError, RequestError

if TYPE_CHECKING:
    from ouro_edge.bundle.bundle import Bundle
    from ouro_edge.bundle.fitted_gate import FittedGate
    from ouro_edge.fitting import Features, Objective

_LEAST_FITTED, _LEAST_HELD_OUT = 400, 100
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@click.command(name="fit-gate", short_help="Fit the exit gate of an exported model to your own text.")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(readable=False, path_type=Path),
    required=True,
    metavar="FILE",
    help='JSONL: objects with "text", "messages", "prompt" and "answer", or "ids".',
)
@click.option(
    "--budget",
    type=float,
    metavar="D",
    help="Store the exit threshold with mean depth D on held-out text as the model's own.",
)
@click.option(
    "--objective",
    type=click.Choice(["look-ahead", "published", "horizon"]),
    default="look-ahead",
    show_default=True,
    help="The gain that the gate learns: of the next loop, of the loop just made, or of the best later one.",
)
@click.option(
    "--max-tokens-fit",
    "most",
    type=int,
    default=20000,
    show_default=True,
    metavar="N",
    help="Fit on at most N tokens, fewer where they would take more than 512 MiB.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which lines are drawn when there are more.")
@click.option("--threads", type=int, help="CPU threads. Default: as for run.")
@click.option("--dry-run", is_flag=True, help="Print what would be gained, write nothing.")
def command(
    bundle: Path,
    data: Path,
    budget: float | None,
    objective: Objective,
    most: int,
    seed: int,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Fit the exit gate of BUNDLE, an exported directory, to text like that which it will see.

    A fifth of the lines is held out: the tables compare the checkpoint's own gate with the new one there. The new gate
    is written beside the model, which stays as it is: delete exit_gate.json to have the checkpoint's gate back.
    """
    from ouro_edge.bundle.bundle import open_bundle
    from ouro_edge.bundle.fitted_gate import GATE_FILE, FittedGate, write_gate
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.fitting import choose_threshold, collect, draw, fit_gate, gate_logits, original_gate, read_lines
    from ouro_edge.fitting.gate_data import count
    from ouro_edge.fitting.gate_features import MOST_BYTES, bytes_per_position, window
    from ouro_edge.runtime.model import Model

    opened = open_bundle(bundle)
    old = original_gate(opened)
    _check(opened, budget, most, seed, writes=not dry_run)
    lines = read_lines(data)
    room = min(most, MOST_BYTES // bytes_per_position(opened.config) * 4 // 5)
    with Model(opened, threads=threads, kv="fp32", gate="original") as model:
        fitted, held_out = draw(
            lines, model, window=window(opened.config), most_fitted=room, most_held_out=max(room // 4, _LEAST_HELD_OUT),
            seed=seed, name=str(data),
        )  # fmt: skip
        counts = count(fitted), count(held_out)
        if counts[0] < _LEAST_FITTED or counts[1] < _LEAST_HELD_OUT:
            raise RequestError(f"{data} gives {counts[0]} tokens to fit on and {counts[1]} held out; wanted at least "
                               f"{_LEAST_FITTED} and {_LEAST_HELD_OUT}: give more lines")  # fmt: skip
        with conversion_progress("Reading") as progress:
            features = collect(model, [*fitted, *held_out], progress)
    test = features.part(counts[0], sum(counts))
    fit = fit_gate(features.part(0, counts[0]), old, objective)
    threshold = None if budget is None else choose_threshold(gate_logits(test.hidden, fit.gate), budget)
    click.echo(f"{data.name}: {counts[0]} tokens to fit on, {counts[1]} held out; objective {objective}, cross-entropy "
               f"{fit.before:.4f} -> {fit.after:.4f} in {fit.iterations} steps")  # fmt: skip
    report = {
        "data": data.name, "objective": objective, "seed": seed, "tokens_fitted": counts[0],
        "tokens_held_out": counts[1], "budget": budget, "cross_entropy": [fit.before, fit.after],
        **_compare(test, old, fit.gate, budget),
    }  # fmt: skip
    if threshold is not None:
        click.echo(f"threshold {threshold:.6g} keeps the mean depth at {budget:g} on the held-out text")
    if dry_run:
        click.echo("nothing was written (--dry-run)")
        return
    file = write_gate(opened, FittedGate(fit.gate.weight, fit.gate.bias, threshold, report))
    default = opened.config.exit_threshold if threshold is None else threshold
    click.echo(f"wrote {file}; the model's own exit threshold is {default:.6g}" + (
        ", which runs every loop: choose one with --budget, or --exit-threshold when running" if default >= 1.0 else ""
    ))  # fmt: skip
    click.echo(f"the checkpoint's gate is kept in the model: delete {GATE_FILE} to have it back")


def _check(bundle: Bundle, budget: float | None, most: int, seed: int, *, writes: bool) -> None:
    """Everything that can be refused before the model is loaded."""
    from ouro_edge.system.cache_dir import cache_directory

    loops = bundle.config.loops
    if loops == 1:
        raise RequestError(f"{bundle.path} has one loop, so there is no depth to choose")
    if budget is not None and not 1.0 <= budget <= loops:
        raise RequestError(f"--budget is {budget:g}; wanted a mean depth from 1 to {loops}, this model's loops")
    if most < _LEAST_FITTED:
        raise RequestError(f"--max-tokens-fit is {most}; wanted at least {_LEAST_FITTED}")
    if seed < 0:
        raise RequestError(f"--seed is {seed}; wanted 0 or more")
    if not writes:
        return
    path = bundle.path.resolve()
    for owner, root in (("the cache", cache_directory()), ("the installed package", Path(__file__).parents[1])):
        if path.is_relative_to(root.resolve()):
            raise RequestError(f"{bundle.path} belongs to {owner}: copy it, or make your own with ouro-edge export")
    if not os.access(path, os.W_OK):
        raise BundleError(f"{bundle.path} cannot be written to: copy the model to a directory of your own")


def _compare(test: Features, old: FittedGate, new: FittedGate, budget: float | None) -> dict[str, object]:
    """Print both gates' trade-offs on held-out features, and return them for the report."""
    from dataclasses import astuple

    from ouro_edge.cli.tables import table
    from ouro_edge.fitting import at_depth, at_threshold, choose_threshold, gate_logits

    loops = len(test.loss)
    logits = [gate_logits(test.hidden, gate) for gate in (old, new)]
    sweep = {t: [at_threshold(test, gate, t) for gate in logits] for t in _THRESHOLDS}
    names = ("threshold", "old depth", "loss", "top-1", "new depth", "loss", "top-1")
    cells = [
        [f"{t:g}", *(cell for p in points for cell in (f"{p.depth:.2f}", f"{p.loss:.4f}", f"{p.accuracy:.1%}"))]
        for t, points in sweep.items()
    ]
    click.echo("\nheld out, by exit threshold; the old gate is the checkpoint's\n" + table(names, cells))
    depths = sorted({1 + i / 2 for i in range(2 * loops - 1)} | ({budget} if budget is not None else set()))
    equal = {
        d: [at_depth(test, d), *(at_threshold(test, gate, choose_threshold(gate, d)) for gate in logits)]
        for d in depths
    }
    names = ("mean depth", "fixed loss", "old", "new", "fixed top-1", "old", "new")
    cells = [
        [f"{d:g}", *(f"{p.loss:.4f}" for p in points), *(f"{p.accuracy:.1%}" for p in points)]
        for d, points in equal.items()
    ]
    click.echo("\nheld out, at equal mean depth (between whole depths, fixed is a mix)\n" + table(names, cells) + "\n")
    inner = [points for d, points in equal.items() if 1 < d < loops]
    fixed, before, after = (sum(points[i].loss for points in inner) / len(inner) for i in range(3))
    click.echo(f"mean loss between depth 1 and {loops}: fixed {fixed:.4f}, old gate {before:.4f}, new gate {after:.4f}")
    if after >= min(fixed, before):
        click.echo("the new gate is NOT better on held-out text: give more data, or another --objective")
    return {
        "mean_loss": {"fixed": fixed, "old": before, "new": after},
        "columns": ["depth", "loss", "accuracy"],
        "by_threshold": {f"{t:g}": dict(zip(("old", "new"), map(astuple, ps), strict=True)) for t, ps in sweep.items()},
        "by_depth": {
            f"{d:g}": dict(zip(("fixed", "old", "new"), map(astuple, ps), strict=True)) for d, ps in equal.items()
        },
    }
