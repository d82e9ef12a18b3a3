"""Clients that dawdle: with the head of a request, its body, or the reading of an answer."""

from __future__ import annotations

import json
import socket

import pytest

CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def closed_by_server(client: socket.socket) -> bytes:
    """What came before the server hung up."""
    client.settimeout(20)
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ch", HEAD.encode()])
def test_no_request_comes(serve, monkeypatch, sent):
    monkeypatch.setattr("ouro_edge.server.listen.HEADER_SECONDS", 0.2)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(sent)
        assert closed_by_server(client) == b""


def test_a_body_that_does_not_come(serve, monkeypatch):
    monkeypatch.setattr("ouro_edge.server.http.endpoint.BODY_SECONDS", 0.2)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{HEAD}Content-Length: 500\r\n\r\n{{".encode())
        answer = closed_by_server(client)
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within" in answer


def test_an_answer_that_nobody_reads(serve, monkeypatch, until, endless):
    monkeypatch.setattr("ouro_edge.server.http.endpoint.WRITE_SECONDS", 0.3)
    server = serve()
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "n": 16, "lens": 20, **endless}
    data = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: server.engine.metrics.requests[CHAT, 499] == 1, 60)
        until(lambda: not server.server.server_state.connections)
    assert server.engine.queue.running == 0
    assert server.chat().status_code == 200


def test_a_silent_stream_shows_signs_of_life(serve, held, monkeypatch):
    monkeypatch.setattr("ouro_edge.server.http.endpoint.PING_SECONDS", 0.05)
    server = serve(held)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    with server.http.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":"))
        held.open.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
