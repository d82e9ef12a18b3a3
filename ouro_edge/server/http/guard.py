"""Who may come in: the Host header, the API key. Knows ASGI; what it keeps out never reaches an endpoint.

A web page can make a browser call a server on this machine under a name of its own (DNS rebinding); the Host header
then holds that name, so a server on loopback answers to loopback names only.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ouro_edge.server.http.endpoint import Reply
from ouro_edge.server.http.errors import ApiError

_OPEN = frozenset(("/", "/health"))  # no key: a page that asks for it, a probe that has none


class HostGuard:
    """Refuses requests whose Host header is none of `hosts`."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and host_name(Headers(scope=scope).get("host", "")) not in self._hosts:
            message = "this server answers to the names of this machine only; give it the host by --allow-host"
            await Reply(send).fail(ApiError(403, message, code="host_not_allowed"))
            return
        await self._app(scope, receive, send)


class KeyGuard:
    """Refuses requests without the key, but for the page and the health check."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # Starlette reads headers as latin-1; constant time, so that the delay of an answer says nothing of the key
            right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not right:
                message = "wanted the header Authorization: Bearer KEY with this server's key"
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
