"""A real server on a free port of this machine, in a thread: on Ouro-nano, or on a model that waits to be let go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from page_driver import chromium

import ouro_edge
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.server.app import make_app
from ouro_edge.server.engine import Engine
from ouro_edge.server.limits import Access, Limits
from ouro_edge.server.listen import Server, open_socket


@pytest.fixture(scope="session")
def nano() -> Iterator[ouro_edge.Model]:
    with ouro_edge.load(threads=1) as model:
        yield model


class Held:
    """A model whose answers wait until they are let go; all else is the model's own."""

    def __init__(self, model: ouro_edge.Model) -> None:
        self._model = model
        self.open = threading.Event()
        self.begun = 0
        self.cancelled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *args: Any, cancel: Cancel, **options: Any) -> Iterator[ouro_edge.Event]:
        self.begun += 1
        while not self.open.wait(0.005):
            if cancel.cancelled:
                self.cancelled += 1
                break
        return self._model.generate(*args, cancel=cancel, **options)


class Running:
    """A server and a plain client for it."""

    def __init__(self, engine: Engine, server: Server, port: int) -> None:
        self.engine, self.server, self.port = engine, server, port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def chat(self, content: str = "hello", **fields: Any) -> httpx.Response:
        return self.http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **fields}
        )

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})


@contextmanager
def serving(model: Any, limits: Limits | None = None, access: Access | None = None) -> Iterator[Running]:
    engine = Engine(model, limits or Limits(grace=0.2))
    listener = open_socket("127.0.0.1", 0)
    names = frozenset(("127.0.0.1", "localhost"))
    server = Server(make_app(engine, access or Access(hosts=names)), engine)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    running = Running(engine, server, listener.getsockname()[1])
    try:
        yield running
    finally:
        running.http.close()
        server.stop()
        server.stop()
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


Serve = Callable[..., Running]


@pytest.fixture
def serve(nano: ouro_edge.Model) -> Iterator[Serve]:
    """serve(model=None, limits=None, access=None) starts a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda model=None, **settings: stack.enter_context(serving(model or nano, **settings))


@pytest.fixture(scope="module")
def server(nano: ouro_edge.Model) -> Iterator[Running]:
    """One server for the tests of a file."""
    with serving(nano) as running:
        yield running


@pytest.fixture
def held(nano: ouro_edge.Model) -> Iterator[Held]:
    model = Held(nano)
    yield model
    model.open.set()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what must come; fails when it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until


@pytest.fixture
def endless(nano: ouro_edge.Model) -> dict[str, Any]:
    """Fields that make a long answer."""
    return {"logit_bias": {str(i): -100 for i in nano.stop_ids}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """visit(server, **settings of the window) opens the page; an error in its script or its policy fails the test.

    Without a server it is a window that has visited nothing yet.
    """
    contexts, problems = [], []

    def visit(server: Running | None, **window: Any) -> Any:
        settings = {"viewport": {"width": 900, "height": 800}, "reduced_motion": "reduce", **window}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        if server is not None:
            page.goto(server.url)
        return page

    yield visit
    for context in contexts:
        context.close()
    unforeseen = [text for text in problems if not text.startswith("Failed to load resource")]
    assert unforeseen == []


@pytest.fixture
def page(server: Running, visit: Callable[..., Any]) -> Any:
    page = visit(server)
    page.locator("#examples button").first.wait_for()
    return page
