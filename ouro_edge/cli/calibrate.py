"""`ouro-edge calibrate`: measure the KV ranges of an exported model, for a cache in int8 or int4."""

from __future__ import annotations

from pathlib import Path

import click

from ouro_edge.cli.progress import conversion_progress
from ouro_edge.errors import RequestError


@click.command(name="calibrate", short_help="Measure the KV ranges of MODEL, for --kv int8 and int4.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--text", "file", type=click.Path(path_type=Path), help="UTF-8 text to run. Default: a built-in page.")
@click.option("--tokens", type=click.IntRange(16), default=640, show_default=True, help="At most this many tokens.")
@click.option("--threads", type=int, help="CPU threads. Default: as for run.")
def command(model: Path, file: Path | None, tokens: int, threads: int | None) -> None:
    """Measure the ranges of keys and values in the exported MODEL, which --kv int8 and int4 need.

    An export measures them already; repeat it with text that is similar to your use.
    """
    from ouro_edge.fitting.calibrate_kv import calibrate

    text = None if file is None else read_text(file)
    with conversion_progress("Calibrating") as progress:
        count = calibrate(model, text, tokens=tokens, threads=threads, progress=progress)
    click.echo(f"{model}: KV ranges measured on {count} tokens")


def read_text(file: Path) -> str:
    """The text of a UTF-8 file. RequestError when it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RequestError(f"{file} cannot be read as text: {problem}") from None
