"""/v1/responses: one answer of the chat endpoint as a response object, whole or as a stream of events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ouro_edge.runtime.events import Done
from ouro_edge.server.http.endpoint import Chunks, log_failure
from ouro_edge.server.http.errors import ApiError, api_error
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.openai.chat import Answer, Chat
from ouro_edge.server.openai.tokens import chat_logprobs, depth_of, usage_of
from ouro_edge.server.responses.chat_fields import read_request, renamed
from ouro_edge.server.responses.output_items import Event, OutputItems


class Responses:
    """The endpoint's handler, over that of chat completions."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def __call__(self, fields: Fields) -> dict[str, Any] | Chunks:
        body, echo = read_request(fields)
        try:
            answer = await self._chat.answer(Fields(body, ""))
        except ApiError as problem:
            raise renamed(problem) from None
        response = Response(answer, echo)
        if answer.job.options.stream:
            return response.events()
        async with aclosing(response.run()) as events:
            async for _ in events:
                pass
        return response.body


class Response:
    """One response being generated; `body` is its state."""

    def __init__(self, answer: Answer, echo: dict[str, Any]) -> None:
        self._answer = answer
        self._output = OutputItems()
        self._reasoning_tokens = 0
        sampler = answer.job.options.sampler
        self.body: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": answer.header["created"],
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": answer.header["model"],
            "output": [],
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "usage": None,
            **echo,
        }

    async def events(self) -> Chunks:
        """The numbered events of a stream. A failure after the first event is the event response.failed."""
        number = 0
        async with aclosing(self._events()) as events:
            async for event in events:
                yield {**event, "sequence_number": number}
                number += 1

    async def _events(self) -> AsyncGenerator[Event, None]:
        begun = False
        try:
            async with aclosing(self.run()) as events:
                async for event in events:
                    if not begun:  # the request has its slot
                        begun = True
                        yield {"type": "response.created", "response": dict(self.body)}
                        yield {"type": "response.in_progress", "response": dict(self.body)}
                    if event:
                        yield event
        except Exception as problem:
            error = api_error(problem)
            if error.code == "internal_error":
                log_failure(problem)
            if not begun:
                raise error from None
            code = "server_error" if error.status >= 500 else error.code or "invalid_prompt"
            self.body |= {"status": "failed", "error": {"code": code, "message": error.message}}
            yield {"type": "response.failed", "response": self.body}
            return
        yield {"type": f"response.{self.body['status']}", "response": self.body}

    async def run(self) -> AsyncGenerator[Event, None]:
        """Generate the answer: an empty event first, then the events of the output; `body` is complete at the end."""
        model, begun = self._answer.model, False
        async with aclosing(self._answer.parts()) as parts:
            async for part in parts:
                if not begun:
                    begun = True
                    yield {}
                tokens = [] if part.token is None else [part.token]
                logprobs = chat_logprobs(model, tokens)["content"] if self._answer.logprobs else []
                self._reasoning_tokens += "reasoning_content" in part.delta and part.token is not None
                more = {} if part.token is None else {"ouro_edge": depth_of(model, part.token)}
                for event in self._output.push(part.delta, logprobs, more):
                    yield event
                if part.done is not None:
                    cut = part.done.reason == "length"
                    for event in self._output.finish("incomplete" if cut else "completed"):
                        yield event
                    self._complete(part.done, cut)

    def _complete(self, done: Done, cut: bool) -> None:
        usage = usage_of({0: done}, 1)
        self.body |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output.items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
                "total_tokens": usage["total_tokens"],
                "ouro_edge": usage["ouro_edge"],
            },
        }
