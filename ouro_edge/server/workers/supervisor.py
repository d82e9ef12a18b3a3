"""Starts the workers of one port, replaces those that die, and stops all of them. Needs POSIX.

The workers inherit one listening socket and accept connections from it; the system gives a connection to one of them.
They are processes of their own sessions, so that Ctrl-C reaches the supervisor only, which tells them once.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ouro_edge.errors import OuroEdgeError, RequestError
from ouro_edge.server.workers.counters import retire
from ouro_edge.server.workers.settings import READY, WorkerSettings

POSIX = os.name == "posix"
MAX_DEATHS, DEATH_SECONDS = 5, 60.0  # more deaths in this time end the server
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0  # after the grace period and the final replies, before a worker is killed

Report = Callable[[str], None]


def thread_shares(threads: int, workers: int) -> list[int]:
    """The threads of each worker: equal shares, at least one each; the first ones get what is left over."""
    return [max(1, threads // workers + (number < threads % workers)) for number in range(workers)]


class Supervisor:
    """The workers of one server. `report` prints a line about what happens to them."""

    def __init__(self, settings: WorkerSettings, threads: list[int], report: Report) -> None:
        if not POSIX:
            raise RequestError("--workers needs Linux or macOS: on this system, start one server")
        self.settings, self._threads, self._report = settings, threads, report
        self._workers: dict[int, subprocess.Popen[str]] = {}
        self._deaths: list[float] = []
        self._signals = 0  # that asked for the end

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers.values() if worker.poll() is None]

    def run(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Serve until a signal; `ready` gets the name of the model and notes when all workers answer.

        OuroEdgeError when the workers cannot be started, or die again and again.
        """
        with self._directory(), self._captured_signals():
            try:
                for number in range(len(self._threads)):  # the first one makes what the others find in the cache
                    first = self._start(number)
                    if first is None:
                        return
                    if not number:
                        about = first
                ready(about)
                while not self._signals:
                    self._look_after()
            finally:
                self._stop_all()

    def _start(self, number: int) -> dict[str, Any] | None:
        """Start a worker and wait until it can answer; None when a signal comes first. OuroEdgeError when it dies."""
        settings = replace(
            self.settings, number=number, loading={**self.settings.loading, "threads": self._threads[number]}
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "ouro_edge.server.workers.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, pass_fds=[settings.listener], start_new_session=True,
        )  # fmt: skip
        self._workers[number] = worker
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(settings.to_json() + "\n")
            worker.stdin.flush()
        except OSError:
            pass  # it has ended already
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while not self._signals:
                if selector.select(_POLL_SECONDS):
                    word, _, rest = worker.stdout.readline().partition(" ")
                    if word != READY:
                        raise OuroEdgeError(f"worker {number} could not start (status {worker.wait()})")
                    return dict(json.loads(rest))
        return None

    def _look_after(self) -> None:
        """Replace workers that have died. OuroEdgeError when too many did in a short time."""
        time.sleep(_POLL_SECONDS)
        for number, worker in list(self._workers.items()):
            status = worker.poll()
            if status is None or self._signals:
                continue
            _close(self._workers.pop(number))
            retire(self.settings.metrics, number, worker.pid)
            now = time.monotonic()
            self._deaths = [*(time_ for time_ in self._deaths if now - time_ < DEATH_SECONDS), now]
            if len(self._deaths) > MAX_DEATHS:
                raise OuroEdgeError(f"{len(self._deaths)} workers died within {DEATH_SECONDS:.0f} seconds, the last "
                                    f"with status {status}: the server ends")  # fmt: skip
            self._report(f"Worker {number} died (status {status}); its requests are lost, another one is started.")
            self._start(number)

    def _stop_all(self) -> None:
        """End all workers: gracefully, at once after another signal, and by force when they do not react."""
        end = time.monotonic() + self.settings.limits.grace + _END_SECONDS
        told = 0
        while running := [worker for worker in self._workers.values() if worker.poll() is None]:
            if time.monotonic() > end:
                for worker in running:
                    worker.kill()
                    worker.wait()
                break
            if told < max(1, min(self._signals, 2)):
                told += 1
                for worker in running:
                    worker.terminate()
            time.sleep(_POLL_SECONDS / 2)
        for worker in self._workers.values():
            _close(worker)

    @contextmanager
    def _directory(self) -> Iterator[None]:
        """A directory for the counters, removed at the end."""
        directory = tempfile.mkdtemp(prefix="ouro-edge-")
        self.settings = replace(self.settings, metrics=Path(directory))
        try:
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def _captured_signals(self) -> Iterator[None]:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]

        def count(*_: Any) -> None:
            self._signals += 1

        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _close(worker: subprocess.Popen[str]) -> None:
    """Close the pipes of a worker that has ended."""
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with suppress(OSError):  # settings that were never read
                pipe.close()
