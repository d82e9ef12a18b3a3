"""Selects the view: terminal screen or plain lines. Imports the terminal libraries only for a screen."""

from __future__ import annotations

import os
import sys

from ouro_edge.terminal.conversation import Conversation
from ouro_edge.terminal.display.view import PlainView, View
from ouro_edge.terminal.input.interrupt import ignore_interrupts
from ouro_edge.terminal.input.keyboard import quiet_keyboard
from ouro_edge.terminal.repl import Repl


def is_terminal() -> bool:
    """Whether standard input and output are a terminal with cursor control."""
    both = sys.stdin.isatty() and sys.stdout.isatty()
    return both and (sys.platform == "win32" or os.environ.get("TERM", "dumb") not in ("dumb", "unknown"))


def open_view(conversation: Conversation) -> View:
    """The view for standard input and output."""
    loops = conversation.model.config.loops
    if not is_terminal():
        return PlainView(loops, conversation.tags)
    from rich.console import Console

    from ouro_edge.terminal.display.markdown import THEME
    from ouro_edge.terminal.display.screen import Screen
    from ouro_edge.terminal.input.history import open_history
    from ouro_edge.terminal.input.prompt import Prompt

    history, problem = open_history()
    screen = Screen(Console(highlight=False, markup=False, emoji=False, theme=THEME), loops, Prompt(history).lines)
    if problem:
        screen.notice(problem)
    return screen


def run(repl: Repl) -> None:
    """Run the conversation to its end; in a terminal, Ctrl-C does not end it."""
    if is_terminal():
        with ignore_interrupts(), quiet_keyboard():
            repl.run()
    else:
        repl.run()
