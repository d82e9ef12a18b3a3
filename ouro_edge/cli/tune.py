"""`ouro-edge bench --tune`: which settings suit this machine. Knows click; measuring is `ouro_edge.measure.tune`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from ouro_edge.measure.tune import Format, Trial

_QUIET = 0.8  # least share of CPU time that was measured on a machine to itself: 0.95 there, 0.5 beside a busy program


def show_tuning(machine: dict[str, Any], progress: Callable[[str], None], as_json: bool) -> None:
    """Time formats and thread counts, print them, and keep the thread count for the runtime to use."""
    from ouro_edge.measure.tune import FORMATS, best_format, best_threads, thread_counts
    from ouro_edge.runtime.backend.session import import_onnxruntime
    from ouro_edge.system.cpus import available_threads
    from ouro_edge.system.tuned_threads import save_tuned

    cpus = available_threads()
    formats = _timed(FORMATS, [cpus], progress)
    block = best_format(formats)
    threads = _timed([block.format], thread_counts(cpus), progress)
    best = best_threads(threads)
    progress("")
    measured = {
        name: [asdict(trial) | {"format": trial.format.name} for trial in trials]
        for name, trials in (("formats", formats), ("threads", threads))
    }
    quiet = min(trial.cpu_share for trial in (*formats, *threads)) >= _QUIET
    path, problem = None, None
    if quiet:
        try:
            path = save_tuned(best.threads, cpus, import_onnxruntime().__version__, measured)
        except ExportError as found:  # what was measured is shown before it is told
            problem = found
    if as_json:
        chosen = {"threads": best.threads, "block_size": block.format.block_size, "file": path and str(path)}
        click.echo(json.dumps({"machine": machine, **chosen, "measured": measured}))
    else:
        _show(machine, formats, block, threads, best, path, quiet)
    if problem is not None:
        raise problem


def _show(
    machine: dict[str, Any], formats: list[Trial], block: Trial, threads: list[Trial], best: Trial,
    path: Path | None, quiet: bool,
) -> None:  # fmt: skip
    from ouro_edge.measure.tune import DEFAULT_BLOCK

    click.echo(f"Two layers of Ouro-1.4B's shapes on {machine['cpu']}, onnxruntime {machine['onnxruntime']}\n")
    click.echo(f"{_table(formats, block)}\n\n{_table(threads, best)}\n")
    if not quiet:
        click.echo("Note: other programs or a quota took CPU time meanwhile, so nothing was kept", err=True)
    kept = "best now" if path is None else f"used from now on where --threads is not given ({path})"
    click.echo(f"--threads {best.threads}: {kept}")
    if block.format.block_size == DEFAULT_BLOCK:
        click.echo(f"--block-size {DEFAULT_BLOCK}: export's default for int4 is right here")
    else:
        gain = next(t for t in formats if t.format.block_size == DEFAULT_BLOCK).one_row / block.one_row
        click.echo(f"--block-size {block.format.block_size}: decodes {gain:.2f} times as fast as export's default")
    share = formats[-1].prefill_copy / block.prefill_copy
    advice = "fast, if this CPU has VNNI" if share < 1 else "lean"
    click.echo(f"--prefill {advice}: fast takes {share:.0%} of lean's time for long prompts")


def _timed(formats: Sequence[Format], threads: Sequence[int], progress: Callable[[str], None]) -> list[Trial]:
    from ouro_edge.measure.tune import Trial, time_formats

    trials = []
    for event in time_formats(formats, threads):
        if isinstance(event, Trial):
            trials.append(event)
        else:
            progress(event)
    return trials


def _table(trials: Sequence[Trial], chosen: Trial) -> str:
    from ouro_edge.cli.tables import table

    head = ("format", "threads", "weights", "1 row", "GB/s", "128 rows", "")
    return table(head, [(
        t.format.name, str(t.threads), f"{t.weight_bytes / 1e6:.0f} MB", f"{1e3 * t.one_row:.2f} ms",
        f"{t.weight_bytes / t.one_row / 1e9:.1f}", f"{1e3 * t.prefill_copy:.0f} ms", "chosen" if t is chosen else "",
    ) for t in trials])  # fmt: skip
