"""The options that several commands share, generated from the table of options. Imports a model only when needed."""

from __future__ import annotations

import functools
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ouro_edge.errors import RequestError
from ouro_edge.runtime.option_table import Option
from ouro_edge.runtime.options import GENERATION_OPTIONS, LOAD_OPTIONS, LoadOptions, from_old_prefill

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

BUILT_IN = (
    "Ouro-nano, the built-in model: a tiny looped model that answers puzzles about people. Ask it what it can do; "
    "name a MODEL for anything else."
)

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

_TYPES: dict[str, Any] = {"number": float, "whole": int, "text": str, "choice": str, "texts": str}


def click_option(option: Option, **more: Any) -> Decorator:
    """A click option for an option of the table. Ranges are not checked here, because the option classes check them."""
    help = f"{option.help} Default: {option.default_text}." if option.default_text else option.help
    about: dict[str, Any] = {"help": help, "default": option.default, "metavar": option.metavar, **more}
    if option.kind == "choice":
        about |= {"metavar": "|".join(option.choices), "show_default": True}
    if option.kind == "biases":
        about |= {"type": (int, float), "multiple": True, "default": (), "callback": _as_mapping}
    elif option.kind == "switch":
        about["is_flag"] = True
    else:
        about |= {"type": _TYPES[option.kind], "multiple": option.kind == "texts"}
    return click.option(*option.flags, option.name, **about)


def exit_options(command: Command) -> Command:
    """Add the options that choose the depth."""
    return _with([click_option(o) for o in GENERATION_OPTIONS.values() if o.group == "depth"], command)


def model_options(command: Command) -> Command:
    """Add the options of LoadOptions."""
    shown = [o for o in LOAD_OPTIONS.values() if "cli" in o.interfaces and o.name != "prefill_weights"]
    return _with([click_option(o) for o in shown], prefill_option(command))


def generation_options(command: Command) -> Command:
    """Add the options of GenerationOptions and LoadOptions."""
    shown = [click_option(o) for o in GENERATION_OPTIONS.values() if "cli" in o.interfaces]
    return _with(shown, model_options(command))


def prefill_option(command: Command) -> Command:
    """Add --prefill-weights, and --prefill as its old name."""
    new = click_option(LOAD_OPTIONS["prefill_weights"], is_eager=True)  # processed before its old name, which sets it
    old = click.option("--prefill", hidden=True, expose_value=False, callback=_old_prefill)
    return _with([new, old], command)


def _with(options: Sequence[Decorator], command: Command) -> Command:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def _as_mapping(ctx: click.Context, param: click.Parameter, value: Sequence[tuple[int, float]]) -> dict[int, float]:
    return dict(value)


def _old_prefill(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if ctx.get_parameter_source("prefill_weights") == ParameterSource.COMMANDLINE:
        raise RequestError("--prefill is the old name of --prefill-weights: give one of them")
    ctx.params["prefill_weights"] = from_old_prefill(value, "--prefill")


def take_load_options(settings: dict[str, Any]) -> LoadOptions:
    """The load options, removed from a command's parameters. RequestError for a wrong value."""
    return LoadOptions(**{name: settings.pop(name) for name, o in LOAD_OPTIONS.items() if "cli" in o.interfaces})


def say(text: str) -> None:
    """Print a sentence on standard error; in a terminal, lines break between words."""
    if sys.stderr.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False, break_long_words=False)
    click.echo(text, err=True)


def open_model(model: str | None, options: LoadOptions, parallel: int = 1, loops: int | None = None) -> Model:
    """Load MODEL, for `loops` loops if that is more than its own number.

    Shows the progress of a conversion, and prints notes about automatic choices.
    """
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.loading import load

    if model is None:
        say(BUILT_IN)
    with conversion_progress() as progress:
        loaded = load(model, **options.arguments(), parallel=parallel, loops=loops, progress=progress)
    for note in loaded.text.notes:
        say(f"Note: {note}")
    if loaded.kv_reason:
        say(loaded.kv_reason)
    return loaded
