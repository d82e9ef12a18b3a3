"""The listening socket, and a server that stops gracefully. Uses uvicorn.

uvicorn's logging is off: its access log would contain paths and addresses. Failures inside answers are logged by the
endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ouro_edge.errors import RequestError
from ouro_edge.server.engine import Engine

HEADER_SECONDS = 30.0  # until the first request of a connection must arrive
_BACKLOG_CONNECTIONS = 128
_FINAL_REPLY_SECONDS = 3.0  # to deliver the final replies of cancelled requests


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0 chooses a free port. RequestError when the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as problem:
        raise RequestError(f"cannot resolve the address {host}: {problem}") from None
    try:
        if os.name == "posix":  # a restart need not wait for old connections; on Windows it would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG_CONNECTIONS)  # immediately: only then is the port reserved
    except OSError as problem:
        listener.close()
        reason = problem.strerror or str(problem)
        raise RequestError(f"cannot listen at {host} port {port}: {reason}; choose another with --port") from None
    listener.setblocking(False)
    return listener


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Connection(H11Protocol):
    """A connection that is closed when no request arrives (uvicorn would wait forever), and that an endpoint can abort:
    closing alone would wait for a client that reads nothing.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}  # uvicorn passes it to every scope
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        begun: Any = self.cycle  # None before the first request, unlike uvicorn's type says
        if begun is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then waits for running requests; a second signal ends them immediately."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(engine.limits.grace + _FINAL_REPLY_SECONDS),
        )
        super().__init__(config)
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on the sockets until `stop` is called."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            self._engine.stop()
            self._engine.close()

    def stop(self) -> None:
        """Stop accepting, and end running requests after the grace period; a second call ends them now. Thread-safe."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server and are not raised again, because a requested stop is not a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        numbers = [getattr(signal, name) for name in names if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        if self.should_exit:
            self._engine.stop()
        self.should_exit = True
        assert self._loop is not None
        self._loop.call_later(self._engine.limits.grace, self._engine.stop)


def run(app: ASGIApp, engine: Engine, listener: socket.socket) -> None:
    """Serve until the server is stopped."""
    asyncio.run(Server(app, engine).serve([listener]))
