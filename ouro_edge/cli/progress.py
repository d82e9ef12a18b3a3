"""Progress of long operations on stderr: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ouro_edge.system.progress import WAITING, Progress

_SECONDS = 30.0  # between two lines


@contextmanager
def conversion_progress(label: str = "Preparing") -> Iterator[Progress]:
    """A callback for long operations; draws a progress bar, a new one for each job; no bar in a log file."""
    bars: list[Any] = []
    last = time.monotonic()

    def show(done: int, total: int, what: str, /) -> None:
        nonlocal last
        if what == WAITING:
            click.echo(f"{what[0].upper()}{what[1:]}.", err=True)
            return
        if sys.stderr is None or not total:
            return
        if not sys.stderr.isatty():
            if time.monotonic() - last >= _SECONDS:
                last = time.monotonic()
                click.echo(f"{label}: {100 * done // total}%{f', {what}' if what else ''}", err=True)
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
