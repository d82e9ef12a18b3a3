"""The order of service: bound, fairness, timeouts, clients that leave, and the end of the server."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.limits import Limits
from ouro_edge.server.queue import Queue

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def test_first_come_first_served():
    async def scene():
        queue, order = Queue(parallel=1, waiting=9), []

        async def visit(name):
            async with queue.slot():
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*map(visit, range(9)))
        assert queue.running == queue.waiting == 0
        return order

    assert asyncio.run(scene()) == list(range(9))


def test_the_line_has_an_end():
    async def scene():
        queue, leave = Queue(parallel=2, waiting=1), asyncio.Event()

        async def visit():
            async with queue.slot():
                await leave.wait()

        visits = [asyncio.create_task(visit()) for _ in range(3)]
        await asyncio.sleep(0)
        assert (queue.running, queue.waiting) == (2, 1)
        with pytest.raises(ApiError, match="try again") as refused:
            async with queue.slot():
                pass
        assert refused.value.status == 429
        leave.set()
        await asyncio.gather(*visits)
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("ticks", [0, 1])
def test_who_leaves_the_line_takes_no_place(ticks):
    """Also when the place was given at the very moment of leaving."""

    async def scene():
        queue, leave = Queue(parallel=1, waiting=9), asyncio.Event()

        async def visit():
            async with queue.slot():
                await leave.wait()

        first, second, third = (asyncio.create_task(visit()) for _ in range(3))
        await asyncio.sleep(0)
        leave.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert second.cancelled() and not third.cancelled()
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(scene())


def in_background(call):
    """Run a request in a thread; `.join()` gives its response."""
    box = []
    thread = threading.Thread(target=lambda: box.append(call()))
    thread.start()

    def join():
        thread.join(30)
        return box[0]

    return join


def test_beyond_the_bound_is_429(serve, held, until):
    server = serve(held, limits=Limits(parallel=1, waiting=1))
    jobs = [in_background(server.chat) for _ in range(2)]
    until(lambda: server.engine.queue.waiting == 1)
    refused = server.chat()
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"
    assert server.http.get("/health").json() == {"status": "ok", "running": 1, "waiting": 1}
    held.open.set()
    assert [job().status_code for job in jobs] == [200, 200]


def test_a_request_has_its_time(serve, held, until):
    server = serve(held, limits=Limits(seconds=0.3))
    response = server.chat()
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
    until(lambda: held.cancelled == 1)
    with server.http.stream("POST", CHAT, json={**HELLO, "stream": True}) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert server.engine.queue.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(serve, held, until, stream):
    import socket

    server = serve(held)
    body = json.dumps({**HELLO, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: held.begun == 1)
    until(lambda: held.cancelled == 1 and server.engine.queue.running == 0)
    until(lambda: server.engine.metrics.requests[CHAT, 499] == 1)
    held.open.set()
    assert server.chat().status_code == 200


def test_a_client_that_leaves_the_line_is_not_served(serve, held, until):
    import socket

    server = serve(held, limits=Limits(parallel=1))
    first = in_background(server.chat)
    until(lambda: held.begun == 1)
    body = json.dumps(HELLO).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: server.engine.queue.waiting == 1)
    until(lambda: server.engine.queue.waiting == 0)
    held.open.set()
    assert first().status_code == 200 and held.begun == 1


def test_a_real_generation_stops_in_the_middle(server, until, endless):
    before = server.engine.metrics.requests[CHAT, 499]
    with server.http.stream("POST", CHAT, json={**HELLO, **endless, "stream": True}) as stream:
        for i, _ in enumerate(stream.iter_lines()):
            if i == 6:
                break
    until(lambda: server.engine.metrics.requests[CHAT, 499] == before + 1)
    assert server.engine.queue.running == 0
    assert server.chat().status_code == 200


def test_stopping_lets_requests_finish(serve, held, until):
    server = serve(held, limits=Limits(grace=20))
    job = in_background(server.chat)
    until(lambda: held.begun == 1)
    server.server.stop()
    until(lambda: server.server.should_exit)
    held.open.set()
    assert job().status_code == 200


def test_stopping_ends_what_takes_too_long(serve, held, until):
    server = serve(held, limits=Limits(grace=0.1, parallel=1))
    jobs = [in_background(server.chat) for _ in range(2)]
    until(lambda: server.engine.queue.waiting == 1)
    server.server.stop()
    for job in jobs:
        response = job()
        assert response.status_code == 503 and response.json()["error"]["code"] == "server_stopping"
