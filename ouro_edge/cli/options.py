"""Options that several commands share, and what they turn into. Knows click; imports the runtime only when asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.errors import RequestError

if TYPE_CHECKING:
    from ouro_edge.runtime.exits.policies import ExitPolicy
    from ouro_edge.runtime.model import Model

BUILT_IN = (
    "Ouro-nano, the built-in model: a tiny looped model that answers puzzles about people. Ask it what it can do; "
    "name a MODEL for anything else."
)

_EXIT = (
    click.option("--exit-threshold", type=float, metavar="Q",
                 help="Stop looping when the exit gate's cumulative probability reaches Q (0 to 1). "
                      "Default: the model's own."),
    click.option("--exit", "rule", metavar="RULE",
                 help="Another rule to stop looping: agreement, confidence:P, entropy:NATS, change:SHARE, or weighted "
                      "(all loops, averaged by the gate)."),
    click.option("--loop-budget", type=float, metavar="MEAN",
                 help="At most this many loops a token on average over an answer; with any rule above."),
    click.option("--loops", type=int, metavar="N", help="Use exactly N loops for every token."),
)  # fmt: skip
_SAMPLING = (
    click.option("--temp", "temperature", type=float,
                 help="Temperature; 0 is greedy. Default: 0 for run and trace, the model's own for chat."),
    click.option("--top-k", type=int, help="Sample from the K most likely tokens."),
    click.option("--top-p", type=float, help="Sample from the smallest set of tokens with this probability."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this share of the likeliest."),
    click.option("--repeat-penalty", "repetition_penalty", type=float, help="Penalty on tokens seen before; 1 is off."),
    click.option("--logit-bias", type=(int, float), multiple=True, metavar="ID BIAS", help="Add to a token's logit."),
    click.option("--seed", type=int, help="Make sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
    click.option("-n", "--max-tokens", type=int, help="At most this many tokens. Default: what the context holds."),
    click.option("--speculate/--no-speculate", default=None,
                 help="Draft tokens with the first loops, check them together: same answer. Default: where it pays."),
)  # fmt: skip
_MODEL = (
    click.option("--kv", default="auto", show_default=True, metavar="auto|fp32|int8|int4",
                 help="Type of the KV cache. auto: int8 where 4096 positions "
                      "in float32 would take over a quarter of the free memory."),
    click.option("--kv-share", default="none", show_default=True, metavar="none|last",
                 help="last: all loops share one KV cache. A quarter of the memory; answers may change."),
    click.option("--ctx", "context", type=int, help="At most this many positions. Default: the model's own."),
    click.option("--prefill", default="auto", show_default=True, metavar="auto|fast|lean",
                 help="The way of long prompts. fast: with a second copy of the weights, a byte each; lean: without; "
                      "auto: fast where it pays and memory is plentiful."),
    click.option("--threads", type=int,
                 help="CPU threads. Default: the number of CPUs that this process may use."),
)  # fmt: skip

Command = Callable[..., Any]

_LOADING = ("kv", "kv_share", "context", "prefill", "threads")


def exit_options(command: Command) -> Command:
    """Add the options that `exit_policy` takes."""
    return _with(_EXIT, command)


def model_options(command: Command) -> Command:
    """Add the options that `open_model` takes."""
    return _with(_MODEL, command)


def generation_options(command: Command) -> Command:
    """Add all options above to a command."""
    return _with(_EXIT + _SAMPLING + _MODEL, command)


def _with(options: Sequence[Command], command: Command) -> Command:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def exit_policy(
    model: Model, *, exit_threshold: float | None, rule: str | None, loops: int | None, loop_budget: float | None
) -> ExitPolicy | None:
    """The policy that the options ask for; None when they ask for none."""
    from ouro_edge.runtime.exits.loop_budget import LoopBudget
    from ouro_edge.runtime.exits.parse import parse_exit_rule
    from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth

    policy: ExitPolicy | None = None
    if sum(option is not None for option in (exit_threshold, rule, loops)) > 1:
        raise RequestError("--exit-threshold, --exit and --loops exclude each other: give one of them")
    if rule is not None:
        policy = parse_exit_rule(rule, "--exit")
    if exit_threshold is not None:
        policy = ExitThreshold(exit_threshold)
    elif loops is not None:
        policy = FixedDepth(loops)
    return policy if loop_budget is None else LoopBudget(loop_budget, policy or model.default_exit())


def generation_arguments(
    model: Model,
    *,
    exit_threshold: float | None,
    rule: str | None,
    loops: int | None,
    loop_budget: float | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    logit_bias: tuple[tuple[int, float], ...],
    speculate: bool | None = None,
    **sampling: float | int | None,
) -> dict[str, Any]:
    """Keyword arguments for `Model.generate`: what the options say, over the model's own settings."""
    policy = exit_policy(model, exit_threshold=exit_threshold, rule=rule, loops=loops, loop_budget=loop_budget)
    changes: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    sampler = model.default_sampler(logit_bias=dict(logit_bias), **changes)
    return {
        "exit": policy,
        "sampler": sampler,
        "stop": stop,
        "max_tokens": max_tokens,
        "speculate": "auto" if speculate is None else speculate,
    }


def open_model(model: str | None, settings: dict[str, Any]) -> Model:
    """Load MODEL, showing progress when it has to be converted first, and saying what was chosen for the user.

    Takes the options that loading needs out of `settings`.
    """
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.loading import load

    if model is None:
        click.echo(BUILT_IN, err=True)
    with conversion_progress() as progress:
        loaded = load(model, **{name: settings.pop(name) for name in _LOADING}, progress=progress)
    for note in loaded.bundle.notes:
        click.echo(f"Note: {note}", err=True)
    if loaded.kv_reason:
        click.echo(loaded.kv_reason, err=True)
    return loaded
