"""`ouro-edge batch`: answers a file of requests in OpenAI's batch format."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.cli.options import exit_options, model_options, open_model, take_load_options
from ouro_edge.errors import RequestError
from ouro_edge.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from ouro_edge.runtime.exits.policies import ExitPolicy
    from ouro_edge.runtime.model import Model
    from ouro_edge.server.batch.files import BatchInput
    from ouro_edge.server.batch.output import Output

_REQUIRED_PACKAGES = ("starlette", "llguidance")
_LINES_FAILED = 3  # exit status


@click.command(name="batch")
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=8, show_default=True, help="Lines that share calls of the model."
)
@click.option("--overwrite", is_flag=True, help="Start again if OUT.jsonl exists, instead of continuing it.")
@click.option("--any-model", is_flag=True, help="Accept every model name in the requests.")
@exit_options
@model_options
def command(
    source: Path, target: Path, model: str | None, parallel: int, overwrite: bool, any_model: bool, **settings: Any
) -> None:
    """Answer a file of requests in OpenAI's batch format with MODEL.

    Lines of IN.jsonl have custom_id, method, url and body; OUT.jsonl gets a line for each as soon as it is finished.
    After an interruption, the same command continues. Exit status: 0 if every line has an answer, 3 if lines failed, 1
    if the batch could not be finished.
    """
    if missing := [name for name in _REQUIRED_PACKAGES if find_spec(name) is None]:
        raise RequestError(f"batch needs {' and '.join(missing)}: pip install 'ouro-edge[serve]'")
    from ouro_edge.server.batch.files import BatchInput
    from ouro_edge.server.batch.output import Output

    loading, options = take_load_options(settings), GenerationOptions(**settings)
    requests = BatchInput(source)
    if target.exists() and os.path.samefile(source, target):
        raise RequestError(f"{target} is the input as well: choose another name for the output")
    with Output(target) as output:
        if not overwrite:
            requests.resume(target, output.lines())
        if requests.done:
            click.echo(f"{target}: {requests.done} of {len(requests)} lines are finished already", err=True)
        if requests.done < len(requests):
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
            with open_model(model, loading, parallel, options.forced_loops) as loaded:
                if overwrite:
                    output.clear()  # not before the model is there
                policy = options.exit_policy(loaded.default_exit())
                names = None if any_model else {"any", loaded.name, model or loaded.name}
                _answer(loaded, requests, output, parallel, policy, names)
    count = len(requests) - requests.failed
    click.echo(f"{count} line{'' if count == 1 else 's'} answered, {requests.failed} failed: {target}", err=True)
    if requests.failed:
        raise click.exceptions.Exit(_LINES_FAILED)


def _answer(
    loaded: Model,
    requests: BatchInput,
    output: Output,
    parallel: int,
    policy: ExitPolicy | None,
    names: set[str] | None,
) -> None:
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.server.batch.run import run_batch
    from ouro_edge.server.engine import Engine
    from ouro_edge.server.limits import Limits

    if policy is not None:
        policy.limit(loaded.config)
    engine = Engine(loaded, Limits(parallel=parallel, waiting=parallel), policy)
    total, count = len(requests) - requests.done, itertools.count(1)
    try:
        with conversion_progress("Answering") as progress:

            def finished() -> None:
                progress(next(count), total, f"{requests.failed} failed" if requests.failed else "")

            _run_until_signal(run_batch(engine, requests, output, names, finished))
    except BaseException:
        state = f"{requests.done} of {len(requests)} lines are finished"
        click.echo(f"{state}: run the command again, without --overwrite, to continue", err=True)
        raise


def _run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine; SIGTERM and SIGHUP cancel it, as Ctrl-C does, and then end the program with their status."""
    import asyncio

    received: list[int] = []

    async def main() -> None:
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for name in ("SIGTERM", "SIGHUP"):
            with suppress(AttributeError, NotImplementedError, ValueError):  # Windows, or not the main thread
                number = getattr(signal, name)
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await task

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None
