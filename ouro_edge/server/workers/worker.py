"""One worker: `python -m ouro_edge.server.workers.worker`, started by the supervisor.

It reads its settings from standard input and prints one line, READY and the model's name as JSON, when it can answer.
The end of standard input means that the supervisor is gone: then the worker stops as for SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
import threading
import time

from ouro_edge.errors import OuroEdgeError
from ouro_edge.loading import load
from ouro_edge.runtime.options import GenerationOptions
from ouro_edge.server.app import make_app
from ouro_edge.server.engine import Engine
from ouro_edge.server.listen import Server
from ouro_edge.server.workers.counters import SharedCounters
from ouro_edge.server.workers.settings import READY, WorkerSettings


def main() -> None:
    """Serve until told to stop. One line on standard error and status 1 when the model cannot be loaded."""
    settings = WorkerSettings.from_json(sys.stdin.readline())
    try:
        _serve(settings)
    except OuroEdgeError as problem:
        sys.exit(f"Error: {problem}")


def _serve(settings: WorkerSettings) -> None:
    limits, options = settings.limits, GenerationOptions(**settings.generation)
    with (
        socket.socket(fileno=settings.listener) as listener,
        load(settings.model, **settings.loading, parallel=limits.parallel, loops=options.forced_loops) as model,
    ):
        policy = options.exit_policy(model.default_exit())
        if policy is not None:
            policy.limit(model.config)
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        engine = Engine(model, limits, policy)
        counters = SharedCounters(settings.metrics, settings.number)
        server = Server(make_app(engine, settings.access, counters.add_others), engine)
        threading.Thread(target=_wait_for_the_end, args=(server,), daemon=True).start()
        notes = [f"Note: {note}" for note in model.text.notes] + ([model.kv_reason] if model.kv_reason else [])
        print(READY, json.dumps({"name": model.name, "notes": notes}), flush=True)
        asyncio.run(_run(server, engine, listener, counters))


async def _run(server: Server, engine: Engine, listener: socket.socket, counters: SharedCounters) -> None:
    writing = asyncio.create_task(counters.keep_written(lambda: engine.metrics.samples(engine.queue)))
    try:
        await server.serve([listener])
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing


def _wait_for_the_end(server: Server) -> None:
    """Stop the server, once it runs, when standard input ends."""
    sys.stdin.read()
    while not server.started:
        time.sleep(0.1)
    server.stop()


if __name__ == "__main__":
    main()
