"""The live region at the end of the screen: finished blocks go into the scrollback, one unfinished block stays below.

Uses rich. Only the unfinished block is redrawn, in one write, so nothing flickers and nothing above it moves.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live_render import LiveRender
from rich.text import Text

from ouro_edge.terminal.display.markdown import Trimmed

MIN_REDRAW_SECONDS = 0.06  # between two drawings
MAX_DRAWING_SHARE = 0.2  # of the elapsed time, also for long blocks


class LiveTail:
    """Context manager around one answer. Blocks are separated by an empty line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = LiveRender("", vertical_overflow="visible")
        self._apart = False
        self._next = 0.0

    def __enter__(self) -> Self:
        self._console.show_cursor(False)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with self._console:
            self._erase()
            self._console.show_cursor(True)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        return time.monotonic() >= self._next

    def show(self, content: RenderableType, fallback: str = "", *, most: int | None = None) -> None:
        """Draw the unfinished block; if it is too high, its last `most` lines, or as many as fit the window."""
        began = time.monotonic()
        room = max(1, self._console.height - 3)
        tail = Trimmed(content, fallback, last=min(room, most or room))
        with self._console:  # one write
            self._erase()
            self._open.set_renderable(self._set_apart(tail))
            self._console.print(self._open, end="")
        now = time.monotonic()
        self._next = now + max(MIN_REDRAW_SECONDS, (now - began) / MAX_DRAWING_SHARE)

    def commit(self, content: RenderableType, fallback: str = "") -> None:
        """Print a finished block permanently, in place of the unfinished one."""
        with self._console:
            self._erase()
            self._console.print(self._set_apart(Trimmed(content, fallback)), end="")
        self._apart, self._next = True, 0.0

    def _erase(self) -> None:
        self._console.control(self._open.position_cursor())
        self._open = LiveRender("", vertical_overflow="visible")

    def _set_apart(self, content: Trimmed) -> RenderableType:
        return Group(Text(""), content) if self._apart else content
