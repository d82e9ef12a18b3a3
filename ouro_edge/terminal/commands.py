"""The commands of a conversation: their names and their help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command; its method in `Repl` has its name."""

    name: str
    argument: str
    help: str


COMMANDS = (
    Command("help", "", "this list"),
    Command("set", "[NAME VALUE]", "change a setting, or show them all; default takes it back"),
    Command("system", "[TEXT]", "change the system message, or show it; none removes it"),
    Command("retry", "", "answer the last question again"),
    Command("undo", "", "forget the last question and its answer"),
    Command("clear", "", "forget the conversation"),
    Command("think", "", "show the thought before the last answer"),
    Command("depth", "[table]", "show how deep each token of the last answer was thought"),
    Command("stats", "", "what the conversation has cost"),
    Command(
        "save", "FILE [--kv]", "write the conversation to a file; --kv: and its state, which need not be read again"
    ),
    Command("load", "FILE", "go on with a saved conversation"),
    Command("bye", "", "leave; so does Ctrl-D"),
)
LEAVING = ("/bye", "/exit", "/quit")
