"""Draws docs/chat.svg: a short conversation with Ouro-nano as a terminal shows it. Run: python docs/chat_capture.py

Needs pyte, which the dev extra installs: it is the terminal.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from ouro_edge import load
from ouro_edge.terminal.conversation import Conversation
from ouro_edge.terminal.display.markdown import THEME
from ouro_edge.terminal.display.screen import Screen
from ouro_edge.terminal.repl import Repl

LINES = (
    "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?",
    "/set show-depth on",
    "What can you do?",
    "/stats",
)
SETTINGS = {"think": None, "show_depth": False}
WIDTH, HEIGHT = 80, 60


def main() -> None:
    """Hold the conversation on a terminal in memory and draw what is on its screen."""
    shown = io.StringIO()
    terminal = Console(
        width=WIDTH, height=HEIGHT, file=shown, force_terminal=True, color_system="truecolor", highlight=False,
        markup=False, emoji=False, theme=THEME, _environ={},
    )  # fmt: skip

    def typed(_: Callable[[], str]) -> Iterator[str]:
        for line in LINES:
            terminal.print(Text.assemble(("> ", "bold"), line))
            yield line

    with load() as model:
        screen = Screen(terminal, model.config.loops, typed)
        Repl(Conversation(model), screen, SETTINGS, lambda values: {}).run()
    picture = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in _lines(shown.getvalue()):
        picture.print(line)
    svg = picture.export_svg(title="ouro-edge chat")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # nothing from outside: any monospaced font will do
    Path(__file__).with_name("chat.svg").write_text(svg, encoding="utf-8")


def _lines(output: str) -> list[Text]:
    """What a terminal shows after this output."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    screen.set_mode(pyte.modes.LNM)
    # pyte knows no dim, so that it is told as a grey.
    pyte.Stream(screen).feed(output.replace("\x1b[2m", "\x1b[90m").replace("\x1b[2;3m", "\x1b[90m"))
    lines = []
    for y in range(screen.cursor.y):
        line = Text()
        for x in range(WIDTH):
            cell = screen.buffer[y][x]
            colour = None if cell.fg == "default" else cell.fg if cell.fg.isalpha() else f"#{cell.fg}"
            line.append(cell.data, Style(color=_grey(colour), bold=cell.bold, underline=cell.underscore))
        line.rstrip()
        lines.append(line)
    return lines


def _grey(colour: str | None) -> str | None:
    return "bright_black" if colour == "brightblack" else colour


if __name__ == "__main__":
    main()
