"""ASGI middleware for access control: the Host header and the API key.

A web page can make a browser send requests to a local server under the page's host name (DNS rebinding). The Host
header then contains that name, so a server on loopback accepts loopback names only.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ouro_edge.server.http.endpoint import Reply
from ouro_edge.server.http.errors import ApiError

_KEYLESS_PATHS = frozenset(("/", "/health"))  # the page asks for the key; probes have none


class HostGuard:
    """Rejects requests whose Host header is not in `hosts`."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and host_name(Headers(scope=scope).get("host", "")) not in self._hosts:
            message = "this server accepts the host names of this machine only; add others with --allow-host"
            await Reply(send).fail(ApiError(403, message, code="host_not_allowed"))
            return
        await self._app(scope, receive, send)


class KeyGuard:
    """Rejects requests without the key, except for the page and the health check."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _KEYLESS_PATHS:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # Starlette reads headers as latin-1. Constant time, so that response times reveal nothing about the key.
            right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not right:
                message = "expected the header Authorization: Bearer KEY with the key of this server"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await Reply(send).fail(error)
                return
        await self._app(scope, receive, send)


def host_name(host: str) -> str:
    """The name in a Host header, without its port: localhost, 127.0.0.1, ::1."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
