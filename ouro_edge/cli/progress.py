"""Progress bars of long operations, on stderr and only in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ouro_edge.system.progress import WAITING, Progress


@contextmanager
def conversion_progress(label: str = "Preparing") -> Iterator[Progress]:
    """A callback for long operations; draws a progress bar, a new one for each job."""
    bars: list[Any] = []

    def show(done: int, total: int, what: str, /) -> None:
        if what == WAITING:
            click.echo(f"{what[0].upper()}{what[1:]}.", err=True)
            return
        if sys.stderr is None or not sys.stderr.isatty() or not total:
            return
        if bars and done < bars[0].pos:
            bars.pop().__exit__(None, None, None)
        if not bars:
            bars.append(click.progressbar(length=total, label=label, file=sys.stderr, item_show_func=lambda x: x))
            bars[0].__enter__()
        bars[0].length = total  # a download's total grows while files are found
        bars[0].update(done - bars[0].pos, what)

    try:
        yield show
    finally:
        if bars:
            bars[0].__exit__(None, None, None)
