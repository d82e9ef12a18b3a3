"""The terminal view: streaming Markdown, folded reasoning, tokens tinted by depth. Uses rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ouro_edge.errors import one_line
from ouro_edge.runtime.events import Done, Token
from ouro_edge.terminal.conversation import Piece
from ouro_edge.terminal.display.blocks import BlockStream
from ouro_edge.terminal.display.depth import legend, tint, tinted
from ouro_edge.terminal.display.live import LiveTail
from ouro_edge.terminal.display.markdown import Trimmed, drawn
from ouro_edge.terminal.display.sanitize import clean
from ouro_edge.terminal.display.summary import summary

_MAX_REASONING_LINES = 6  # shown while the model is still reasoning


class Screen:
    """A View on a rich console; `read` yields the user's lines."""

    lasting = True

    def __init__(self, console: Console, loops: int, read: Callable[[Callable[[], str]], Iterator[str]]) -> None:
        self.console, self._loops, self._read = console, loops, read

    def lines(self, status: Callable[[], str]) -> Iterator[str]:
        """The lines that the user types, with `status` below the prompt."""
        return self._read(status)

    def notice(self, text: str) -> None:
        """Print dimmed text."""
        self.console.print(Text(clean(text), style="dim"))

    def error(self, text: str) -> None:
        """Print an error without line breaks."""
        self.console.print(Text.assemble(("Error: ", "bold red"), one_line(text)))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print columns; the last one wraps."""
        grid = Table.grid(padding=(0, 2))
        for _ in rows[0]:
            grid.add_column()
        for row in rows:
            grid.add_row(*(Text(clean(cell)) for cell in row))
        self.console.print(Trimmed(grid), end="")

    def answer(self, events: Iterable[Piece | Done], *, show_depth: bool) -> None:
        """Stream an answer; finished blocks go into the scrollback, and the text stays however the answer ends."""
        done, depths = None, dict[int, int]()
        with LiveTail(self.console) as live:
            drawing = _TintedDrawing(live, self.console, self._loops) if show_depth else _Drawing(live)
            live.show(Text("…", style="dim"))
            try:
                for event in events:
                    if isinstance(event, Done):
                        done = event
                    else:
                        drawing.add(event)
                        depths[event.tokens] = event.depth
            finally:
                drawing.end()
        if done is None:
            return
        if not drawing.anything:
            self.notice("(no answer)")
        self.console.print()
        if show_depth:
            self.console.print(legend(list(depths.values()), self._loops, self.console))
        self.notice(summary(done, self._loops) + "\n")

    def thought(self, text: str) -> None:
        """Print reasoning dimmed, as it was shown while it streamed."""
        self.console.print(Text(clean(text).strip(), style="dim italic"))

    def depths(self, tokens: Sequence[Token]) -> bool:
        """The tokens in their tints, and the legend."""
        self.console.print(Trimmed(tinted(tokens, self._loops, self.console)), end="")
        self.console.print(legend([token.depth for token in tokens], self._loops, self.console))
        return True


class _Drawing:
    """Running state of one answer drawn as Markdown."""

    def __init__(self, live: LiveTail) -> None:
        self._live = live
        self._thought, self._thought_tokens = "", 0
        self._blocks = BlockStream()
        self.anything = False

    def add(self, piece: Piece) -> None:
        """Show a piece of the reasoning or of the answer."""
        text = clean(piece.text)
        if piece.thinking:
            self._thought += text
            self._thought_tokens = piece.tokens
            if self._live.due:
                shown = Text(self._thought[-4000:].strip() or "thinking…", style="dim italic")
                self._live.show(shown, most=_MAX_REASONING_LINES)
            return
        if not self.anything:
            text = text.lstrip("\n")
            if not text.strip():
                return
            self._fold("")
        self.anything = True
        self._say(text, piece)

    def end(self) -> None:
        """Draw the rest; the text stays on the screen."""
        if not self.anything:
            self._fold(" (unfinished)")
        self._finish()

    def _fold(self, how: str) -> None:
        if self._thought.strip():
            line = f"reasoning: {self._thought_tokens} tokens{how}, /think shows it"
            self._live.commit(Text(line, style="dim italic"))
            self.anything = True
        self._thought = ""

    def _say(self, text: str, piece: Piece) -> None:
        for block in self._blocks.push(text):
            self._live.commit(drawn(block), block)
        if self._live.due:
            self._live.show(drawn(self._blocks.tail), self._blocks.tail)

    def _finish(self) -> None:
        if self._blocks.tail.strip():
            self._live.commit(drawn(self._blocks.tail), self._blocks.tail)


class _TintedDrawing(_Drawing):
    """Running state of one answer drawn with tinted tokens, without Markdown, which would rearrange the tokens."""

    def __init__(self, live: LiveTail, console: Console, loops: int) -> None:
        super().__init__(live)
        self._console, self._loops = console, loops
        self._open = Text()

    def _say(self, text: str, piece: Piece) -> None:
        self._open.append(text, tint(piece.depth, self._loops, self._console))
        while (at := self._open.plain.find("\n\n")) >= 0:
            finished, self._open = self._open.divide([at + 2])
            if finished.plain.strip():
                self._live.commit(finished)
        if self._live.due:
            self._live.show(self._open)

    def _finish(self) -> None:
        if self._open.plain.strip():
            self._live.commit(self._open)
