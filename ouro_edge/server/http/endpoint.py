"""A POST endpoint: JSON body in, JSON or a stream of events out, errors in OpenAI's format. Must not import models.

The work of a request ends when its client disconnects, its time is over or the answer cannot be delivered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from ouro_edge.server.http.errors import ApiError, api_error
from ouro_edge.server.http.fields import Fields, parse_json
from ouro_edge.server.limits import BODY_SECONDS, MAX_BODY, PING_SECONDS, WRITE_SECONDS

Chunks = AsyncGenerator[dict[str, Any], None]
Handler = Callable[[Fields], Awaitable[dict[str, Any] | Chunks]]

CLIENT_GONE = 499  # nginx's status code, for the metrics only
_log = logging.getLogger("ouro_edge.server")


class ClientGone(Exception):
    """The client has disconnected."""


class Endpoint:
    """An ASGI application around a handler, which returns an object or an asynchronous generator of chunks."""

    def __init__(self, handler: Handler, seconds: float, count: Callable[[str, int], None]) -> None:
        self._handler, self._seconds, self._count = handler, seconds, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, scope.get("state", {}).get("abort"))
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    fields = parse_json(await read_body(scope, receive))
                    await _while_connected(receive, self._answer(fields, reply))
            except TimeoutError:
                raise ApiError(504, f"the request took longer than {self._seconds:g} seconds", code="timeout") from None
        except ClientGone:
            reply.status = CLIENT_GONE
        except Exception as problem:
            error = api_error(problem)
            if error.code == "internal_error":
                log_failure(problem)
            with suppress(ClientGone):
                await reply.fail(error)
        self._count(scope["path"], reply.status)

    async def _answer(self, fields: Fields, reply: Reply) -> None:
        result = await self._handler(fields)
        if isinstance(result, dict):
            await reply.json(200, result)
            return
        async with aclosing(result) as chunks:
            await _relay(chunks, reply)


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The body of a JSON request. ApiError for another content type, a body that is too large or too slow."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":  # web pages can send other types to any server without a CORS check
        raise ApiError(415, "expected the header Content-Type: application/json")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b""):
        shown = encoding[:40].decode("ascii", "replace")
        raise ApiError(415, f"the header Content-Encoding is {shown!r}; send the body without compression")
    too_long = ApiError(413, f"the body is larger than {MAX_BODY} bytes", headers={"Connection": "close"})
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > MAX_BODY:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise too_long
                more = message.get("more_body", False)
    except TimeoutError:
        message_text = f"the body did not arrive within {BODY_SECONDS:g} seconds"
        raise ApiError(408, message_text, headers={"Connection": "close"}) from None
    return bytes(body)


class Reply:
    """The answer to one request: JSON, or a stream of server-sent events."""

    def __init__(self, send: Send, abort: Callable[[], None] | None = None) -> None:
        self._send = send
        self._abort = abort  # drops the connection and its unsent data
        self.status = 0  # 0: nothing sent yet

    async def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """Send a complete answer."""
        body = dumps(value)
        await self._start(status, {"content-type": "application/json", "content-length": str(len(body))}, headers)
        await self._write({"type": "http.response.body", "body": body})

    async def event(self, value: dict[str, Any]) -> None:
        """Send one event, preceded by the headers for the first event."""
        if not self.status:
            # no-transform and X-Accel-Buffering keep proxies from buffering events
            head = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8", **head})
        kind = value.get("type") if "sequence_number" in value else None  # an event of the Responses API
        await self.raw((b"event: " + kind.encode() + b"\n" if kind else b"") + b"data: " + dumps(value) + b"\n\n")

    async def raw(self, data: bytes, more: bool = True) -> None:
        """Send bytes of a stream."""
        await self._write({"type": "http.response.body", "body": data, "more_body": more})

    async def fail(self, error: ApiError) -> None:
        """Send an error as the answer, or as the last event of a stream."""
        if not self.status:
            await self.json(error.status, error.body, error.headers)
        else:
            await self.raw(b"data: " + dumps(error.body) + b"\n\n", more=False)
            self.status = error.status

    async def _start(self, status: int, *headers: dict[str, str] | None) -> None:
        self.status = status
        pairs = [(name.lower().encode(), text.encode()) for part in headers for name, text in (part or {}).items()]
        await self._write({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._send(message)
        except (TimeoutError, OSError):
            if self._abort is not None:
                self._abort()
            raise ClientGone from None


def dumps(value: Any) -> bytes:
    """JSON in ASCII, so that no text can break the framing; NaN is a bug and raises."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def log_failure(problem: BaseException) -> None:
    """Log the type and place of a failure, without its message, which may quote user text."""
    at = problem.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at else "?"
    _log.error("%s in %s", type(problem).__name__, where, exc_info=bool(os.environ.get("OURO_EDGE_DEBUG")) and problem)


async def _relay(chunks: Chunks, reply: Reply) -> None:
    """Send the chunks, and comments during long pauses."""
    following = asyncio.ensure_future(anext(chunks, None))
    end = b"data: [DONE]\n\n"
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=PING_SECONDS if reply.status else None)
            if not done:
                await reply.raw(b": still here\n\n")
                continue
            chunk = following.result()
            if chunk is None:
                break
            await reply.event(chunk)
            end = b"" if "sequence_number" in chunk else end  # there the last event is the end
            following = asyncio.ensure_future(anext(chunks, None))
    finally:
        following.cancel()
        await asyncio.wait({following})
    await reply.raw(end, more=False)


async def _while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Await the work; cancel it and raise ClientGone if the client disconnects first."""
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        job.result()
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.wait({job, gone})
        if not job.cancelled():
            job.exception()  # retrieved, so that asyncio does not log it


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
