"""Draws docs/chat.svg: a short conversation with Ouro-nano as a terminal shows it. Run: python docs/chat_capture.py"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ouro_edge import load
from ouro_edge.terminal.conversation import Conversation
from ouro_edge.terminal.markdown import THEME
from ouro_edge.terminal.repl import Repl
from ouro_edge.terminal.screen import Screen

LINES = (
    "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?",
    "/set show-depth on",
    "Ada likes Ben. Ben likes Cleo. Cleo likes Dan. Ada likes someone who likes someone who likes who?",
    "What can you do?",
    "/depth table",
)
NOTHING = {"think": None, "show_depth": False}


def main() -> None:
    """Hold the conversation on a console that records what it shows."""
    console = Console(
        record=True, width=80, height=40, file=io.StringIO(), highlight=False, markup=False, emoji=False, theme=THEME
    )

    def typed(_: object):  # type: ignore[no-untyped-def]
        for line in LINES:
            console.print(Text.assemble(("> ", "bold"), line))
            yield line

    with load() as model:
        screen = Screen(console, model.config.loops, typed)
        Repl(Conversation(model), screen, NOTHING, lambda values: {"exit": None, "sampler": None}).run()
    svg = console.export_svg(title="ouro-edge chat")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # nothing from outside: any monospaced font will do
    Path(__file__).with_name("chat.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
