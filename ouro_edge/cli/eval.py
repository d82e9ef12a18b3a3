"""`ouro-edge eval`: perplexity, divergence from another model and exact match, by depth and by exit rule."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ouro_edge.cli.calibrate import read_text
from ouro_edge.cli.progress import conversion_progress

if TYPE_CHECKING:
    from ouro_edge.evaluation.sensitivity import Sensitivity
    from ouro_edge.measure.quality import Quality
    from ouro_edge.runtime.options import KVType


@click.command(name="eval", short_help="Measure the quality of a MODEL, and compare it with another.")
@click.argument("model")
@click.option("--against", metavar="MODEL", help="Compare the probabilities with those of this model.")  # fmt: skip
@click.option("--text", "text_file", type=click.Path(path_type=Path), metavar="FILE",
              help="UTF-8 text to measure on. Default: built-in English prose.")  # fmt: skip
@click.option("--windows", type=click.IntRange(1), metavar="N",
              help="Use at most N windows of 512 tokens. Default: the whole text.")  # fmt: skip
@click.option("--exit", "exits", multiple=True, metavar="RULE", help="Also measure an exit rule, such as gate:0.7.")
@click.option("--questions", "question_file", type=click.Path(path_type=Path), metavar="FILE",
              help='JSONL: objects with "prompt" and "answer"; measures how many answers match exactly.')  # fmt: skip
@click.option("--most", type=click.IntRange(1), metavar="N", help="Use at most N questions.")
@click.option("--kv", type=click.Choice(["fp32", "int8", "int4", "auto"]), default="fp32", show_default=True,
              help="Type of the KV cache; with fp32 only the weights make a difference.")  # fmt: skip
@click.option("--threads", type=int, help="CPU threads. Default: as for run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--report", "kind", type=click.Choice(["quality", "sensitivity"]), default="quality", show_default=True,
              help="sensitivity: KL from --against CHECKPOINT when only one loop, or only one tensor, has its rounded "
                   "weights. In NumPy, one pass for each; by default one window.")  # fmt: skip
@click.option("--chart", type=click.Path(path_type=Path), metavar="FILE.svg", help="Also draw the figures by depth.")
def command(
    model: str,
    against: str | None,
    text_file: Path | None,
    windows: int | None,
    exits: tuple[str, ...],
    question_file: Path | None,
    most: int | None,
    kv: KVType,
    threads: int | None,
    as_json: bool,
    kind: str,
    chart: Path | None,
) -> None:
    """Measure perplexity at every depth of MODEL by llama-perplexity's protocol: windows of 512 tokens without overlap,
    of which the second half is scored. A checkpoint directory is computed in float32, by NumPy.

    With --against, also the Kullback-Leibler divergence (KL, in nats a token) from the other model at the same depth,
    and how often both have the same most probable token. Exit rules are compared with its full depth.
    """
    from ouro_edge.errors import RequestError
    from ouro_edge.evaluation.questions import read_questions
    from ouro_edge.measure.quality import evaluate, measure_sensitivity

    if most is not None and question_file is None:
        raise RequestError("--most limits questions: add --questions FILE")
    text = None if text_file is None else read_text(text_file)
    if kind == "sensitivity":
        if against is None or exits or question_file is not None or chart is not None:
            raise RequestError("--report sensitivity needs --against CHECKPOINT, and takes no exit rules, questions or "
                               "chart")  # fmt: skip
        with conversion_progress("Measuring") as progress:
            shares = measure_sensitivity(model, against, text=text, windows=windows or 1, progress=progress)
        click.echo(json.dumps(asdict(shares), indent=1) if as_json else sensitivity_report(shares))
        return
    questions = [] if question_file is None else read_questions(question_file, most)
    with conversion_progress("Measuring") as progress:
        found = evaluate(
            model, against=against, text=text, windows=windows, exits=exits, questions=questions, kv=kv,
            threads=threads, progress=progress,
        )  # fmt: skip
    if chart is not None:
        from ouro_edge.measure.quality_chart import chart as draw

        try:
            chart.write_text(draw(found), encoding="utf-8")
        except OSError as problem:
            raise RequestError(f"{chart} cannot be written: {problem}") from None
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else report(found))


def sensitivity_report(found: Sensitivity) -> str:
    """Two tables: loops, then tensors by their KL."""
    from ouro_edge.cli.tables import printable, table

    loops = [(f"loop {number}", f"{kl:.5f}") for number, kl in enumerate(found.loops, start=1)]
    tensors = sorted(found.tensors.items(), key=lambda item: -item[1])
    rows = [(printable(name), f"{kl:.5f}") for name, kl in tensors]
    return f"{table(('only rounded in', 'KL'), loops)}\n\n{table(('only rounded tensor', 'KL'), rows)}"


def report(found: Quality) -> str:
    """The scores as a table, and what they were measured on."""
    from ouro_edge.cli.tables import printable, table

    head, rows = ["", "loops", "perplexity"], []
    if found.against is not None:
        head += ["KL", "median", "99%", "same top"]
    if found.exact_match is not None:
        head.append("exact match")
    for number, score in enumerate(found.scores):
        row = [score.name, f"{score.depth:.2f}", f"{score.perplexity:.3f}"]
        if (kl := score.divergence) is not None:
            row += [f"{kl.mean:.4f}", f"{kl.median:.4f}", f"{kl.percentile_99:.3f}", f"{kl.same_top:.2%}"]
        if found.exact_match is not None:
            row.append(f"{found.exact_match[number]:.1%}")
        rows.append(row)
    about = f"{printable(found.model)}: {found.tokens} tokens"
    about += "" if found.against is None else f", against {printable(found.against)}"
    about += f", {found.questions} questions" if found.questions else ""
    return f"{about}\n{table(head, rows)}"
