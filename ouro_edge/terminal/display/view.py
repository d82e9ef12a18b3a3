"""The View protocol of a conversation, and its plain-text implementation for pipes and dumb terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Protocol

from ouro_edge.errors import RequestError, not_text, one_line
from ouro_edge.runtime.events import Done, Token
from ouro_edge.runtime.text.reasoning import ReasoningTags
from ouro_edge.terminal.conversation import Piece
from ouro_edge.terminal.display.sanitize import clean
from ouro_edge.terminal.display.summary import summary


class View(Protocol):
    """Output and input of a conversation. Implementations clean all text from models and files."""

    lasting: bool  # interactive: a failure must not end the conversation

    def lines(self, status: Callable[[], str]) -> Iterator[str]:
        """The user's lines until the input ends; `status` may be shown while waiting."""

    def notice(self, text: str) -> None:
        """Show a message that is not part of an answer."""

    def error(self, text: str) -> None:
        """Show an error on one line."""

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Show rows of cells; the last cell of each may be long."""

    def answer(self, events: Iterable[Piece | Done], *, show_depth: bool) -> None:
        """Show an answer while it streams."""

    def thought(self, text: str) -> None:
        """Show the reasoning before an answer."""

    def depths(self, tokens: Sequence[Token]) -> bool:
        """Show tokens tinted by depth; False if the view cannot show tints."""


class PlainView:
    """Answers on standard output, everything else on standard error; no escape sequences."""

    def __init__(self, loops: int, tags: ReasoningTags) -> None:
        self._loops, self._tags = loops, tags
        self.lasting = sys.stdin.isatty()

    def lines(self, status: Callable[[], str]) -> Iterator[str]:
        """Lines of standard input. RequestError when it is not valid text."""
        if self.lasting:
            with suppress(ImportError):  # not on Windows, whose console edits lines itself
                import readline  # noqa: F401  (importing it enables line editing in input())
        both = self.lasting and sys.stdout.isatty()
        while True:
            try:
                if self.lasting and not both:
                    print("> ", end="", file=sys.stderr, flush=True)
                line = input("> " if both else "")
            except EOFError:
                return
            except UnicodeDecodeError as problem:
                raise RequestError(not_text("standard input", problem)) from None
            except KeyboardInterrupt:
                if not self.lasting:
                    raise
                self.notice("\n(Ctrl-D or /bye quits)")
                continue
            yield line

    def notice(self, text: str) -> None:
        """Print on standard error."""
        print(clean(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print on standard error, on one line."""
        self.notice(f"Error: {one_line(text)}")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print aligned columns on standard error."""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            self.notice("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def answer(self, events: Iterable[Piece | Done], *, show_depth: bool) -> None:
        """Print the text as it streams, reasoning between its tags; depths as numbers on standard error."""
        thinking, depths = False, dict[int, int]()
        try:
            for event in events:
                if isinstance(event, Done):
                    done = event
                    continue
                if event.thinking != thinking:
                    thinking = event.thinking
                    print(self._tags.opening if thinking else self._tags.closing, end="")
                print(clean(event.text), end="", flush=True)
                depths[event.tokens] = event.depth
        finally:
            if isinstance(events, Generator):
                events.close()  # now: where the reader has left, the interpreter would report what it raises at its end
            with suppress(BrokenPipeError) if sys.exc_info()[0] else nullcontext():
                print(flush=True)
        if show_depth:
            self.notice("depths: " + " ".join(map(str, depths.values())))
        if self.lasting:
            self.notice(summary(done, self._loops))

    def thought(self, text: str) -> None:
        """Print on standard error."""
        self.notice(text.strip())

    def depths(self, tokens: Sequence[Token]) -> bool:
        """Always False: plain text has no tints."""
        return False
