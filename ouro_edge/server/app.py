"""The ASGI application: routes and middleware. Uses Starlette."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ouro_edge.server.engine import Engine
from ouro_edge.server.handlers import make_handlers, new_header
from ouro_edge.server.http.endpoint import Endpoint, Handler, dumps
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.http.guard import HostGuard, KeyGuard
from ouro_edge.server.http.page import page_endpoint
from ouro_edge.server.limits import Access
from ouro_edge.server.metrics import CONTENT_TYPE, Samples, render
from ouro_edge.server.openai.replies import ResponseHeader

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model


def make_app(engine: Engine, access: Access, totals: Callable[[Samples], Samples] = lambda own: own) -> Starlette:
    """The ASGI application over an engine; `totals` adds the metrics of other processes to its own."""
    model, metrics = engine.model, engine.metrics
    header = new_header(engine)

    def post(path: str, handler: Handler) -> Route:
        endpoint = Endpoint(
            handler, engine.limits.seconds, lambda path, status: metrics.requests.update([(path, status)])
        )
        return Route(path, endpoint, methods=["POST"])

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [_model_card(model, engine, header)]})

    async def one_model(request: Request) -> Response:
        if (name := request.path_params["name"]) != header.model:
            error = ApiError(
                404, f"model {name[:100]!r} does not exist; this server has {header.model}", code="model_not_found"
            )
            return _failure(error)
        return _json(_model_card(model, engine, header))

    async def health(request: Request) -> Response:
        if engine.stopping:
            return _json({"status": "stopping"}, 503)
        return _json({"status": "ok", "running": engine.queue.running, "waiting": engine.queue.waiting})

    async def measured(request: Request) -> Response:
        return Response(render(totals(metrics.samples(engine.queue))), headers={"Content-Type": CONTENT_TYPE})

    app = Starlette(
        routes=[
            Route("/", page_endpoint()),
            Route("/health", health),
            Route("/metrics", measured),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            *(post(path, handler) for path, handler in make_handlers(engine, header).items()),
        ],
        middleware=_middleware(access),
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    return app


def _middleware(access: Access) -> list[Middleware]:
    """The middleware, outermost first."""
    guards = []
    if access.hosts is not None:
        guards.append(Middleware(HostGuard, hosts=access.hosts))
    if access.origins:
        # "*" admits the headers that a page asks for: clients add their own, such as openai-js its x-stainless-*.
        origins, methods = list(access.origins), ["GET", "POST"]
        guards.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"]))
    if access.api_key is not None:
        guards.append(Middleware(KeyGuard, key=access.api_key))
    return guards


def _model_card(model: Model, engine: Engine, header: ResponseHeader) -> dict[str, Any]:
    config = model.config
    ours = {
        "loops": config.loops,
        "has_gate": config.has_gate,
        "exit": str(engine.default_exit),
        "exit_threshold": getattr(engine.default_exit, "threshold", None),
        "context": config.max_positions,
        "kv": model.kv,
    }
    return {"id": header.model, "object": "model", "created": header.since, "owned_by": "ouro-edge", "ouro_edge": ours}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(value), status, headers, "application/json")


def _failure(error: ApiError) -> Response:
    return _json(error.body, error.status, error.headers)


async def _refuse(request: Request, problem: Exception) -> Response:
    """Errors raised by Starlette itself: an unknown path or method."""
    assert isinstance(problem, HTTPException)
    what = {404: "unknown path", 405: "method not allowed"}
    message = f"{what.get(problem.status_code, problem.detail)}: {request.method} {request.url.path[:100]}"
    if problem.status_code == 404 and (meant := _meant(request)):
        message += f"; expected {meant}"
    return _failure(ApiError(problem.status_code, message, headers=dict(problem.headers or {})))


def _meant(request: Request) -> str | None:
    """The path of this server that an unknown path resembles, or the list of all of them under /v1."""
    known = [route.path for route in request.app.routes if isinstance(route, Route) and "{" not in route.path]
    parts = [part for part in request.url.path.lower().split("/") if part]
    for count in range(len(parts)):  # another prefix, none, or one twice; doubled slashes, one at the end
        rest = "/" + "/".join(parts[count:])
        if found := [path for path in known if path in (rest, f"/v1{rest}")]:
            return found[0]
    return "one of " + ", ".join(path for path in known if path.startswith("/v1/"))
