"""`ouro-edge serve`: an OpenAI-compatible server with a chat page."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.cli.options import BUILT_IN, exit_options, model_options, open_model, say, take_load_options
from ouro_edge.cli.progress import conversion_progress
from ouro_edge.errors import RequestError
from ouro_edge.runtime.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import socket

    from ouro_edge.server.limits import Access, Limits

_REQUIRED_PACKAGES = ("starlette", "uvicorn", "llguidance")
_KEY_VARIABLE = "OURO_EDGE_API_KEY"
_MAX_SECONDS = 86_400  # for --timeout and --grace


@click.command(name="serve")
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 chooses a free port.")
@click.option("--api-key", metavar="KEY", help=f"Require this key from clients. Default: {_KEY_VARIABLE}, if set.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Allow pages of this origin; may be repeated.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Also accept this Host header, on loopback; may be repeated.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share the port and the threads, each with a copy of the model (not on Windows).",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests that share calls of the model, per worker.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=32,
    show_default=True,
    help="Requests that may wait, per worker; further requests get 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of a request, including waiting.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for running requests to finish when the server stops.",
)
@click.option(
    "--cache",
    type=click.IntRange(0),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="Memory for the states of earlier conversations, of all workers together.",
)
@exit_options
@model_options
def command(
    model: str | None,
    host: str,
    port: int,
    api_key: str | None,
    cors: tuple[str, ...],
    allow_host: tuple[str, ...],
    workers: int,
    parallel: int,
    queue: int,
    timeout: float,
    grace: float,
    cache: int,
    **settings: Any,
) -> None:
    """Serve MODEL over HTTP, for OpenAI's clients and browsers.

    The API is at http://HOST:PORT/v1, a chat page at http://HOST:PORT/. Ctrl-C or SIGTERM stops the server when running
    requests are done; a second one stops it immediately.
    """
    if missing := [name for name in _REQUIRED_PACKAGES if find_spec(name) is None]:
        raise RequestError(
            f"serve needs {' and '.join(missing)}: install the extra serve (in a clone: pip install '.[serve]')"
        )
    from ouro_edge.cli.tables import printable
    from ouro_edge.server.app import make_app
    from ouro_edge.server.engine import Engine
    from ouro_edge.server.limits import Access, Limits
    from ouro_edge.server.listen import is_loopback, open_socket, run

    key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
    key = None if key is None else key.strip()  # keys in headers arrive without surrounding white space
    if key == "":
        raise RequestError(f"the API key is empty: set a value for --api-key or {_KEY_VARIABLE}, or omit both")
    for name, seconds in (("--timeout", timeout), ("--grace", grace)):
        if not seconds <= _MAX_SECONDS:
            raise RequestError(f"{name} is {seconds}; expected at most {_MAX_SECONDS} seconds")
    for origin in cors:
        if not re.fullmatch(r"https?://[^/\s]+|\*", origin):
            raise RequestError(f"--cors is {origin!r}; expected an origin such as https://example.org")
    loading, options = take_load_options(settings), GenerationOptions(**settings)
    names = frozenset(("localhost", "127.0.0.1", "::1", host.lower(), *map(str.lower, allow_host)))
    access = Access(api_key=key, hosts=names if is_loopback(host) else None, origins=cors)
    limits = Limits(
        parallel=parallel, waiting=queue, seconds=timeout, grace=grace, cache_bytes=(cache << 20) // workers
    )
    listener = open_socket(host, port)  # before the model is loaded, which may take a minute

    def announce(model_name: str) -> None:
        if not is_loopback(host) and key is None:
            click.echo("Warning: anyone who can reach this address can use the server; set --api-key.", err=True)
        name = f"[{host}]" if ":" in host else host
        click.echo(f"{printable(model_name)} at http://{name}:{listener.getsockname()[1]}", err=True)

    with listener:
        if workers > 1:
            _serve_in_workers(workers, model, loading, settings, limits, access, listener, announce)
            return
        with open_model(model, loading, parallel, options.forced_loops) as loaded:
            policy = options.exit_policy(loaded.default_exit())
            if policy is not None:
                policy.limit(loaded.config)
            logging.basicConfig(format="%(message)s", level=logging.WARNING)
            engine = Engine(loaded, limits, policy)
            announce(loaded.name)
            run(make_app(engine, access), engine, listener)


def _serve_in_workers(
    workers: int, model: str | None, loading: LoadOptions, generation: dict[str, Any], limits: Limits, access: Access,
    listener: socket.socket, announce: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve in several processes; the conversion of a checkpoint is made here, with its progress."""
    from ouro_edge.loading import resolve_model
    from ouro_edge.server.workers.settings import WorkerSettings
    from ouro_edge.server.workers.supervisor import Supervisor, thread_shares
    from ouro_edge.system.cpus import available_threads

    threads = thread_shares(loading.threads or available_threads(), workers)
    settings = WorkerSettings(
        model="", loading=loading.arguments(), generation=generation, limits=limits, access=access,
        listener=listener.fileno(), metrics=Path(), number=0,
    )  # fmt: skip
    supervisor = Supervisor(settings, threads, say)
    if model is None:
        say(BUILT_IN)
    with conversion_progress() as progress:
        supervisor.settings = replace(settings, model=str(resolve_model(model, progress)))

    def ready(about: dict[str, Any]) -> None:
        for note in about["notes"]:
            say(note)
        shares = ", ".join(map(str, threads)) if len(set(threads)) > 1 else f"{threads[0]} each"
        say(f"{workers} workers; threads: {shares}.")
        announce(about["name"])

    supervisor.run(ready)
