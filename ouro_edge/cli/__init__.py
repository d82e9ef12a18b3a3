"""The command line: click, one file a command. A command's module is imported only when the command is used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from ouro_edge.errors import OuroEdgeError
from ouro_edge.version import __version__

_COMMANDS = ("calibrate", "chat", "export", "fit-gate", "inspect", "run", "trace", "verify")


class _Commands(click.Group):
    """Finds a command in the module of its name, and prints our own errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"ouro_edge.cli.{cmd_name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OuroEdgeError as problem:
            click.echo(f"Error: {problem}", err=True)
            sys.exit(1)
        except MemoryError:
            click.echo("Error: not enough memory for this model; close other programs or use a smaller one", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ouro-edge")
def main() -> None:
    """Run looped language models (Ouro) on CPUs.

    MODEL is an exported directory, a checkpoint directory, a .gguf file, or a hub id such as ByteDance/Ouro-1.4B.
    """
