"""`ouro-edge bench`: how fast a model runs on this machine, and how fast its memory would let it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


def _numbers(least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """A callback that reads whole numbers separated by commas, none below `least`."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in value.split(",") if part))
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of whole numbers such as 1,2,4") from None
        if any(number < least for number in numbers):
            raise click.BadParameter(f"{value!r} holds a number below {least}")
        return numbers

    return read


@click.command(name="bench")
@click.argument("model", required=False)
@click.option(
    "-p",
    "--prompts",
    callback=_numbers(1),
    default="128",
    show_default=True,
    metavar="N,...",
    help="Prompt lengths to prefill, '' for none.",
)
@click.option(
    "-n",
    "--tokens",
    callback=_numbers(1),
    default="32",
    show_default=True,
    metavar="N,...",
    help="Numbers of tokens to decode, '' for none.",
)
@click.option(
    "-d",
    "--context",
    "contexts",
    callback=_numbers(0),
    default="0",
    show_default=True,
    metavar="N,...",
    help="Positions that are there before. Their keys and values are random numbers, put in place without "
    "computing them: attention costs the same whatever they hold.",
)
@click.option(
    "--depths",
    callback=_numbers(1),
    default="",
    metavar="N,...",
    help="Loops for every token. Default: 1 to the model's.",
)
@click.option(
    "--kv",
    "kinds",
    default="auto",
    show_default=True,
    metavar="TYPE,...",
    help="Types of the KV cache: auto, fp32, int8, int4.",
)
@click.option(
    "--threads",
    callback=_numbers(1),
    default="",
    metavar="N,...",
    help="CPU threads. Default: what --tune found, else the CPUs that this process may use.",
)
@click.option(
    "--prefill", default="auto", show_default=True, metavar="auto|fast|lean", help="How long prompts are processed."
)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each test.")
@click.option("--tune", is_flag=True, help="Find the best settings of this machine instead; takes half a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print one object with every repeat.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    prompts: tuple[int, ...],
    tokens: tuple[int, ...],
    contexts: tuple[int, ...],
    depths: tuple[int, ...],
    kinds: str,
    threads: tuple[int, ...],
    prefill: str,
    repeat: int,
    tune: bool,
    as_json: bool,
) -> None:
    """Time prefill and decoding of MODEL: medians, with the range of the repeats.

    --tune needs no MODEL: it times number formats and thread counts on a random block of a large model's shapes, says
    which options to give, and keeps the thread count for all commands.

    Each pair of KV type and thread count is loaded in a process of its own, for its load time and its memory. GB/s is
    what decoding reads: the weights once a call of the block, the head once a token, the keys and values. It stands
    beside what this machine's memory gives to a plain read (the largest number of a 256 MB array, by as many threads):
    that bounds decoding. Close other programs; nothing here corrects for them.
    """
