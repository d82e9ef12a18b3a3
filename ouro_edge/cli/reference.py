"""Writes docs/options.md from the table of options: `python -m ouro_edge.cli.reference > docs/options.md`.

`commands_page` is a page of the documentation site.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from ouro_edge.cli import main
from ouro_edge.runtime.exits.parse import RULES
from ouro_edge.runtime.option_table import Option
from ouro_edge.runtime.options import GENERATION_OPTIONS, LOAD_OPTIONS
from ouro_edge.terminal.settings import CHAT_OPTIONS

_START = """\
# Options

Made from the table of options by `python -m ouro_edge.cli.reference > docs/options.md`; a test compares the two.

## Exit rules

An exit rule decides when a token stops looping. The command line (`--exit`), `/set exit` in a chat, the server
(`"exit"`), the llm plugin (`-o exit`) and Python (`ouro_edge.parse_exit`) read the same text:

    RULE[:VALUE][,floor=N][,ceiling=N][,budget=MEAN]
"""
_AFTER_RULES = """\
`floor=N` and `ceiling=N` keep the depth between two numbers of loops; `depth`, `full` and `weighted` take neither.
`budget=MEAN` limits the mean number of loops per token of an answer: loops that easy tokens do not use are available to
later ones. Examples: `gate:0.7`, `gate:0.7,ceiling=3`, `confidence:0.9,floor=2,budget=2.5`.

`exit_threshold` is short for `gate:Q`, `loops` for `depth:N`; `loop_budget` adds a budget to the exit rule, or to the
model's own. At most one of `exit`, `exit_threshold` and `loops` may be given.
"""
_ANSWER = """\
One answer: `run`, `chat` and `trace` take these on the command line, `/set` changes them in a chat (under the long name
of the command line, without its dashes), a request to the server and the llm plugin take them by name, and
`ouro_edge.GenerationOptions` holds them in Python. `serve` and `batch` take those of the depth, as the default of all
requests.
"""
_LOADING = """\
Loading a model: keywords of `ouro_edge.load`, fields of `ouro_edge.LoadOptions`, and options of `run`, `chat`, `trace`,
`serve` and `batch`.
"""
_COMMANDS = """\
# Commands

The help of every command, as `ouro-edge COMMAND --help` prints it. [Options](options.md) describes the exit rules, and
the options that a chat and the server have too.
"""
_HEAD = ("name", "command line", "also in", "value", "default", "meaning")
_ALSO = {"set": "`/set`", "http": "server", "llm": "llm"}


def options_page() -> str:
    """The text of docs/options.md."""
    rules = _table(("rule", "a token stops when"), ((f"`{rule.form}`", rule.help) for rule in RULES.values()))
    answer = _table(_HEAD, map(_row, GENERATION_OPTIONS.values()))
    chat = _table(_HEAD, map(_row, CHAT_OPTIONS.values()))
    loading = _table(_without_also(_HEAD), (_without_also(_row(option)) for option in LOAD_OPTIONS.values()))
    parts = (
        _START, rules, _AFTER_RULES, "## An answer\n", _ANSWER, answer, "## A chat\n", chat, "## A model\n", _LOADING,
        loading,
    )  # fmt: skip
    return "\n".join(parts)


def commands_page() -> str:
    """The help of all commands in Markdown."""
    with click.Context(main, info_name="ouro-edge", terminal_width=100, **main.context_settings) as group:
        parts = [_COMMANDS, _help("ouro-edge", main.get_help(group))]
        for name in main.list_commands(group):
            command = main.get_command(group, name)
            assert command is not None
            with click.Context(command, group, name) as context:
                parts.append(_help(f"ouro-edge {name}", command.get_help(context)))
    return "\n".join(parts)


def _help(name: str, text: str) -> str:
    return f"## {name}\n\n```text\n{text.rstrip()}\n```\n"


def _row(option: Option) -> Sequence[str]:
    flags = ", ".join(f"`{flag}`" for flag in option.flags) or "-"
    also = [_ALSO[name] + (f" (`{option.json_name}`)" if name == "http" and option.json_name else "")
            for name in _ALSO if name in option.interfaces]  # fmt: skip
    default = option.default_text or (f"`{option.default}`" if option.kind == "choice" else "")
    if option.kind == "whole" and option.default is not None:
        default = str(option.default)
    return (f"`{option.name}`", flags, ", ".join(also) or "-", option.expected, default or "-", option.help)


def _without_also(row: Sequence[str]) -> Sequence[str]:
    return [*row[:2], *row[3:]]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    print(options_page(), end="")
