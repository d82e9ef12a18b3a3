"""The slash commands of `chat`: names, arguments and help texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command; the method `_name` of `Repl` implements it."""

    name: str
    argument: str
    help: str


COMMANDS = (
    Command("help", "", "show this list"),
    Command("set", "[NAME VALUE]", "change a setting (default restores it), or show all settings"),
    Command("system", "[TEXT]", "change the system message (none removes it), or show it"),
    Command("retry", "", "regenerate the last answer"),
    Command("undo", "", "remove the last question and its answer"),
    Command("clear", "", "remove all messages"),
    Command("think", "", "show the reasoning before the last answer"),
    Command("depth", "[table]", "show the exit depth of each token of the last answer"),
    Command("stats", "", "show token, time and loop counts of the conversation"),
    Command("save", "FILE [--kv]", "save the conversation; --kv: with its state, so that loading need not compute it"),
    Command("load", "FILE", "continue a saved conversation"),
    Command("bye", "", "quit, like Ctrl-D"),
)
LEAVING = ("/bye", "/exit", "/quit")
