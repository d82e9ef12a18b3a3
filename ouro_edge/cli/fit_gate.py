"""`ouro-edge fit-gate`: fit the exit gate of an exported model to your own text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ouro_edge.fitting import Comparison, GateFit, Objective


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
    help="Store as the model's exit threshold the one with mean depth D on held-out text.",
)
@click.option(
    "--objective",
    type=click.Choice(["look-ahead", "published", "horizon"]),
    default="look-ahead",
    show_default=True,
    help="The gain that the gate learns: of the next loop, of the current loop, or of the best later loop.",
)
@click.option(
    "--max-tokens-fit",
    type=int,
    default=20000,
    show_default=True,
    metavar="N",
    help="Fit on at most N tokens; on fewer if their features take more than 512 MiB.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the selection, if there are more lines.")
@click.option("--threads", type=int, help="CPU threads. Default: as for run.")
@click.option("--dry-run", is_flag=True, help="Print the tables and write nothing.")
def command(
    bundle: Path,
    data: Path,
    budget: float | None,
    objective: Objective,
    max_tokens_fit: int,
    seed: int,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Fit the exit gate of BUNDLE, an exported directory, to text that is similar to its use.

    A fifth of the lines is held out; the tables compare the checkpoint's gate with the new one on these lines. The new
    gate is stored in a separate file: delete exit_gate.json to return to the checkpoint's gate.
    """
    from ouro_edge.bundle.directory import open_bundle
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.fitting.gate_pipeline import check_writable, fit_gate

    opened = open_bundle(bundle)
    if not dry_run:
        check_writable(opened)
    with conversion_progress("Reading") as progress:
        fit = fit_gate(
            opened, data, budget=budget, objective=objective, max_tokens_fit=max_tokens_fit, seed=seed,
            threads=threads, progress=progress,
        )  # fmt: skip
    (fitted, held_out), (before, after) = fit.tokens, fit.cross_entropy
    click.echo(f"{data.name}: {fitted} tokens to fit on, {held_out} held out; objective {objective}, cross-entropy "
               f"{before:.4f} -> {after:.4f} in {fit.iterations} steps")  # fmt: skip
    _show_comparison(fit.comparison, opened.config.loops)
    if fit.gate.threshold is not None:
        click.echo(f"threshold {fit.gate.threshold:.6g} keeps the mean depth at {budget:g} on the held-out text")
    if dry_run:
        click.echo("nothing was written (--dry-run)")
    else:
        _write(fit)


def _write(fit: GateFit) -> None:
    """Store the gate, and print the effect."""
    file, threshold = fit.write(), fit.gate.threshold
    default = fit.bundle.config.exit_threshold if threshold is None else threshold
    click.echo(f"wrote {file}; the model's own exit threshold is {default:.6g}" + (
        ", which runs every loop: choose one with --budget, or --exit-threshold when running" if default >= 1.0 else ""
    ))  # fmt: skip
    click.echo(f"the model still contains the checkpoint's gate: delete {file.name} to return to it")


def _show_comparison(comparison: Comparison, loops: int) -> None:
    """Print the trade-offs of both gates on held-out text."""
    from ouro_edge.cli.tables import table

    names = ("threshold", "old depth", "loss", "top-1", "new depth", "loss", "top-1")
    cells = [
        [f"{t:g}", *(cell for p in points for cell in (f"{p.depth:.2f}", f"{p.loss:.4f}", f"{p.accuracy:.1%}"))]
        for t, points in comparison.by_threshold.items()
    ]
    click.echo("\nheld out, by exit threshold; the old gate is the checkpoint's\n" + table(names, cells))
    names = ("mean depth", "fixed loss", "old", "new", "fixed top-1", "old", "new")
    cells = [
        [f"{d:g}", *(f"{p.loss:.4f}" for p in points), *(f"{p.accuracy:.1%}" for p in points)]
        for d, points in comparison.by_depth.items()
    ]
    click.echo("\nheld out, at equal mean depth (between whole depths, fixed is a mix)\n" + table(names, cells) + "\n")
    fixed, before, after = comparison.mean_loss
    click.echo(f"mean loss between depth 1 and {loops}: fixed {fixed:.4f}, old gate {before:.4f}, new gate {after:.4f}")
    if not comparison.is_better:
        click.echo("the new gate is NOT better on held-out text: give more data, or another --objective")
