"""Progress of long work, on stderr and only where a person can see it. Knows click."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def conversion_progress(label: str = "Converting") -> Iterator[Callable[[int, int, str], None]]:
    """A callback for `export_bundle` that draws a bar once there is something to draw."""
    bars: list[Any] = []

    def show(done: int, total: int, name: str) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return
        if bars and bars[0].length != total:  # another job: calibration after export
            bars.pop().__exit__(None, None, None)
        if not bars:
            bars.append(click.progressbar(length=total, label=label, file=sys.stderr, item_show_func=lambda x: x))
            bars[0].__enter__()
        bars[0].update(done - bars[0].pos, name)

    try:
        yield show
    finally:
        if bars:
            bars[0].__exit__(None, None, None)
