"""The command line, one module per command. The module of a command is imported only when the command is used."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from ouro_edge.errors import OuroEdgeError, one_line
from ouro_edge.version import __version__

_COMMANDS = (
    "batch",
    "bench",
    "cache",
    "calibrate",
    "chat",
    "doctor",
    "eval",
    "export",
    "fit-gate",
    "inspect",
    "run",
    "serve",
    "trace",
    "verify",
)


_NO_SPACE = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)]


class _Commands(click.Group):
    """Imports each command from the module of its name, and prints expected errors on one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"ouro_edge.cli.{cmd_name.replace('-', '_')}").command
        return command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _interrupt_is_quiet(), _full_disk_is_said():  # the help of all commands imports them
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a pipe with a legacy code page must not abort an answer half-way
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if isinstance(sys.stdin, io.TextIOWrapper):  # in the C locale, bytes that are not text would pass unnoticed
            sys.stdin.reconfigure(errors="strict")
        with _termination_unwinds(), _interrupt_is_quiet():
            try:
                with _full_disk_is_said():
                    return super().invoke(ctx)
            except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
                raise
            except OuroEdgeError as problem:
                _fail(str(problem))
            except MemoryError:
                _fail("not enough memory for this model; close other programs or use a smaller one")
            except Exception as problem:
                if os.environ.get("OURO_EDGE_DEBUG"):
                    raise
                _fail(f"unexpected {type(problem).__name__}: {problem}; set OURO_EDGE_DEBUG=1 for a traceback")


def _fail(text: str) -> NoReturn:
    """Print one line on stderr and exit with status 1."""
    click.echo(f"Error: {one_line(text)}", err=True)
    sys.exit(1)


@contextmanager
def _interrupt_is_quiet() -> Iterator[None]:
    """Ctrl-C exits with status 130, as shells expect, without click's "Aborted!"."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _full_disk_is_said() -> Iterator[None]:
    """One line when the output does not fit on its disk. Files that a command writes have messages of their own."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _NO_SPACE:
            raise
        _fail(f"the output cannot be written: {problem.strerror}; free some space, or write it to another disk")


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """SIGTERM and SIGHUP exit through the clean-up handlers, as Ctrl-C does, so that no partial export is left behind.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in ending if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ouro-edge")
def main() -> None:
    """Run looped language models (Ouro) on CPUs.

    MODEL is an exported directory, a checkpoint directory, a .gguf file, or a hub id such as ByteDance/Ouro-1.4B;
    calibrate, fit-gate and verify need an exported directory. Without MODEL, commands that only read a model use
    the built-in one.
    """


__all__ = []
