"""The handlers of the API by path; the HTTP server and the batch command share them."""

from __future__ import annotations

import time

from ouro_edge.server.engine import Engine
from ouro_edge.server.http.endpoint import Handler
from ouro_edge.server.openai.chat import Chat
from ouro_edge.server.openai.completions import Completions
from ouro_edge.server.openai.constraints import Schemas
from ouro_edge.server.openai.embeddings import Embeddings
from ouro_edge.server.openai.replies import ResponseHeader
from ouro_edge.server.responses.handler import Responses


def new_header(engine: Engine) -> ResponseHeader:
    """What all answers of an engine have in common."""
    return ResponseHeader(engine.model.name, int(time.time()))


def make_handlers(engine: Engine, header: ResponseHeader) -> dict[str, Handler]:
    """Path -> handler of a POST request."""
    chat = Chat(engine, Schemas(engine.model), header)
    return {
        "/v1/chat/completions": chat,
        "/v1/responses": Responses(chat),
        "/v1/completions": Completions(engine, header),
        "/v1/embeddings": Embeddings(engine, header),
    }
