"""`ouro-edge trace`: exit depth and the candidates of each loop, for every token."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from ouro_edge.cli.options import generation_options, open_model, take_load_options
from ouro_edge.errors import RequestError
from ouro_edge.runtime.options import GenerationOptions


@click.command(name="trace")
@click.argument("model", required=False)
@click.option("-p", "--prompt", required=True, help="The prompt; the answer is generated and traced.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--whole", is_flag=True, help="Also trace the prompt.")
@click.option("--candidates", type=click.IntRange(1, 10), default=2, show_default=True, help="Candidates per loop.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a self-contained page instead of a table.")
@generation_options
def command(
    model: str | None,
    prompt: str,
    raw: bool,
    whole: bool,
    candidates: int,
    page: Path | None,
    **settings: Any,
) -> None:
    """Show the exit depth and every loop's candidates of an answer.

    MODEL answers the prompt; every token is shown with its exit probability after each loop.
    """
    from ouro_edge.evaluation.trace import trace
    from ouro_edge.evaluation.trace_page import page as draw
    from ouro_edge.runtime.events import Token
    from ouro_edge.runtime.exits.loop_budget import LoopBudget

    if settings["temperature"] is None:
        settings["temperature"] = 0.0
    loading, options = take_load_options(settings), GenerationOptions(**settings)
    if isinstance(options.exit_policy(), LoopBudget):
        raise RequestError("trace evaluates each token separately; a loop budget depends on earlier tokens: omit it")
    with open_model(model, loading, loops=options.forced_loops) as loaded:
        arguments = options.arguments(loaded)
        if raw:
            ids = loaded.tokenizer.encode_text(prompt)
        else:
            ids = loaded.tokenizer.encode(loaded.render([{"role": "user", "content": prompt}]))
        prefix = loaded.prefix_of(ids) if options.prefix is None else options.prefix
        arguments["prefix"] = prefix
        answer = [event.id for event in loaded.generate(ids, **arguments) if isinstance(event, Token)]
        start = 1 if whole else len(ids)
        traced = trace(loaded, ids + answer, start=start, exit=arguments["exit"], candidates=candidates, prefix=prefix)
    if page is None:
        click.echo(_table(traced))
        return
    try:
        page.write_text(draw(traced, f"{loaded.name}: {_shortened(prompt)}", _colours()), encoding="utf-8")
    except OSError as problem:
        raise RequestError(f"{page} cannot be written: {problem.strerror or problem}") from None
    click.echo(page)


def _shortened(text: str, most: int = 60) -> str:
    """The beginning of a text on one line, cut between words where it has any."""
    text = " ".join(text.split())
    return text if len(text) <= most else (text[: most + 1].rpartition(" ")[0] or text[:most]) + "…"


def _colours() -> str:
    """The chat page's colours; empty in a build without the page."""
    file = files("ouro_edge.server") / "page" / "colours.css"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _table(traced: list[Any]) -> str:
    from ouro_edge.cli.tables import table

    loops = len(traced[0].loops)
    rows = []
    gate = any(p == p for token in traced for p in token.exit_probs)  # NaN without one
    for token in traced:
        stops = ["/".join("-" if p != p else f"{p:.0%}" for p in token.exit_probs)] * gate
        lens = [" ".join(f"{text!r} {share:.0%}" for _, text, share in candidates) for candidates in token.loops]
        rows.append((repr(token.text), str(token.depth), *stops, *lens))
    return table(("token", "depth", *["stops at"] * gate, *(f"loop {r + 1}" for r in range(loops))), rows)
