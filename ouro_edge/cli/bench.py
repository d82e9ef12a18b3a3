"""`ouro-edge bench`: speed, load time and memory of a model, compared with the memory bandwidth of this machine."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.cli.options import prefill_option
from ouro_edge.errors import RequestError
from ouro_edge.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from ouro_edge.measure.speed import Plan

KINDS = ("prefill", "decode")


def _numbers(least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """A click callback that parses whole numbers separated by commas, each at least `least`."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in value.split(",") if part))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,2,4") from None
        if any(number < least for number in numbers):
            raise click.BadParameter(f"{value!r} contains a number below {least}")
        return numbers

    return read


@click.command(name="bench", short_help="Measure the speed of MODEL on this machine.")
@click.argument("model", required=False)
@click.option(
    "-p",
    "--prompts",
    callback=_numbers(1),
    default="128",
    show_default=True,
    metavar="N,...",
    help="Lengths of prompts to prefill; '' for none.",
)
@click.option(
    "-n",
    "--tokens",
    callback=_numbers(1),
    default="32",
    show_default=True,
    metavar="N,...",
    help="Numbers of tokens to decode; '' for none.",
)
@click.option(
    "-d",
    "--context",
    "contexts",
    callback=_numbers(0),
    default="0",
    show_default=True,
    metavar="N,...",
    help="Positions before the test. Their keys and values are random numbers, because the time of attention does not "
    "depend on their values.",
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
    help="CPU threads; a list compares them and names the fastest. Default: the CPUs that this process may use.",
)
@click.option(
    "--parallel",
    callback=_numbers(1),
    default="",
    metavar="N,...",
    help="Also time the decoding of N generations at once, which share calls of the model.",
)
@prefill_option
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Number of runs of each test.")
@click.option("--json", "as_json", is_flag=True, help="Print one object with every repeat.")
def command(
    model: str | None,
    prompts: tuple[int, ...],
    tokens: tuple[int, ...],
    contexts: tuple[int, ...],
    depths: tuple[int, ...],
    kinds: str,
    threads: tuple[int, ...],
    parallel: tuple[int, ...],
    prefill_weights: str,
    repeat: int,
    as_json: bool,
) -> None:
    """Time prefill and decoding of MODEL: medians, with the range of the repeats.

    `--threads 1,2,4` compares thread counts: the last line names the fastest for each kind of test.

    Each pair of KV type and thread count is loaded in a new process, to measure load time and memory. GB/s is the data
    that decoding reads: the weights once per block call, the head once per token, keys and values. It is compared with
    the memory bandwidth of this machine (reading a 256 MB array with the same number of threads), which limits
    decoding. The streams of `--parallel` are compared with one stream of a model that was loaded for one ("1, alone").
    Close other programs first; the results are not corrected for them.
    """
    from ouro_edge.cli.bench_tables import loading_table, speed_table, streams_table
    from ouro_edge.cli.options import BUILT_IN, say
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.loading import MAX_PARALLEL, open_model_files, resolve_model
    from ouro_edge.measure.speed import Plan
    from ouro_edge.prefill_weights import prefill_copy_for
    from ouro_edge.runtime.backend.session import default_threads

    if not prompts and not tokens:
        raise RequestError("nothing to time: give prompt lengths (-p) or numbers of tokens (-n)")
    if max(parallel, default=1) > MAX_PARALLEL:
        raise RequestError(f"--parallel is {max(parallel)}; expected numbers up to {MAX_PARALLEL}")
    if model is None:
        say(BUILT_IN)
    with conversion_progress() as progress:
        path = resolve_model(model, progress)
        # Created here, so that it does not count as load time.
        prefill_copy_for(open_model_files(path), prefill_weights, progress)
    plan = Plan(prompts, tokens, depths, contexts or (0,), repeat)
    machine = _machine()
    runs = [
        _run(path, kv.strip(), count, prefill_weights, plan, parallel)
        for count in threads or (default_threads(),)
        for kv in kinds.split(",")
    ]
    fastest = {kind: fastest_threads(runs, kind) for kind in KINDS}
    if as_json:
        click.echo(json.dumps({"machine": machine, "model": str(path), "runs": runs, "fastest_threads": fastest}))
        return
    click.echo(f"{path.name} on {machine['cpu']}, onnxruntime {machine['onnxruntime']}\n")
    click.echo(loading_table(runs))
    for table in filter(None, (*(speed_table(runs, kind) for kind in KINDS), streams_table(runs))):
        click.echo(f"\n{table}")
    if named := [f"--threads {count} for {kind}" for kind, count in fastest.items() if count is not None]:
        click.echo(f"\nfastest: {', '.join(named)}")


def fastest_threads(runs: list[dict[str, Any]], kind: str) -> int | None:
    """The thread count with the least time over all tests of a kind; None unless several counts were timed.

    Each test counts by its median. All thread counts have the same tests, one set per KV type.
    """
    seconds: dict[int, float] = {}
    for run in runs:
        medians = [median(speed["seconds"]) for speed in run["speeds"] if speed["test"]["kind"] == kind]
        seconds[run["threads"]] = seconds.get(run["threads"], 0.0) + sum(medians)
    return min(seconds, key=lambda count: seconds[count]) if len(seconds) > 1 and any(seconds.values()) else None


def _run(path: Path, kv: str, threads: int, prefill: str, plan: Plan, parallel: tuple[int, ...] = ()) -> dict[str, Any]:
    """The results of one load of the model, as plain values."""
    from ouro_edge.loading import open_model_files
    from ouro_edge.measure.bandwidth import memory_read
    from ouro_edge.measure.own_process import in_own_process
    from ouro_edge.measure.speed import End, Loading, Speed, check_plan, time_model
    from ouro_edge.measure.streams import StreamSpeed, time_streams
    from ouro_edge.runtime.backend.kv_choice import choose_kv
    from ouro_edge.runtime.backend.session import check_threads

    bundle = open_model_files(path)  # report errors before measuring anything
    check_plan(bundle, plan)
    check_threads(threads)
    choose_kv(bundle, kv)
    run: dict[str, Any] = {"memory_read": [memory_read(threads)], "speeds": [], "streams": []}
    for event in in_own_process(time_model, path, kv, threads, prefill, plan):
        match event:
            case str():
                _progress(event)
            case Loading():
                run |= {"kv": event.kv, "threads": threads, "load_s": event.load, "first_token_s": event.first_token}
                run["loaded"] = asdict(event.memory)
            case Speed():
                rate = {"rate": median(event.rates), "rates": event.rates, "bandwidth": event.bandwidth}
                run["speeds"].append(asdict(event) | rate)
            case End():
                run |= {"end": asdict(event.memory), "idle_cpu": event.idle_cpu}
    several = (path, kv, threads, parallel, plan, prefill)
    for timed in in_own_process(time_streams, *several) if parallel and plan.tokens else ():
        if isinstance(timed, StreamSpeed):
            run["streams"].append(asdict(timed) | {"rate": median(timed.rates)})
        else:
            _progress(timed)
    _progress("")
    run["memory_read"].append(memory_read(threads))
    return run


def _progress(text: str) -> None:
    """A status line on stderr that replaces the previous one."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    from ouro_edge.system.cpus import cpu_name

    names = ("numpy", "onnxruntime")
    return {"cpu": cpu_name(), "system": platform.platform(), "ouro-edge": __version__} | {n: version(n) for n in names}
