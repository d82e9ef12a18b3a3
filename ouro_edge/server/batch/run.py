"""Answers the lines of a batch: several at a time, written in the order in which they finish."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ouro_edge.server.batch.files import BatchInput
from ouro_edge.server.batch.lines import Line, custom_id_of, read_request
from ouro_edge.server.batch.output import ID_PREFIX, Output
from ouro_edge.server.engine import Engine
from ouro_edge.server.handlers import make_handlers, new_header
from ouro_edge.server.http.endpoint import Handler, log_failure
from ouro_edge.server.http.errors import ApiError, api_error
from ouro_edge.server.http.fields import Fields


async def run_batch(
    engine: Engine,
    source: BatchInput,
    output: Output,
    models: Collection[str] | None = None,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Answer all pending lines, as many at a time as the engine has slots; `finished` is called after each.

    `models` are the names that a body may give; None allows all. OutputError when the output cannot be written.
    """
    handlers, lines = make_handlers(engine, new_header(engine)), source.pending()

    async def work() -> None:
        for line in lines:
            answer = await _answer(line, source, handlers, models)
            output.write(answer)
            source.finish(line.number, (answer["response"] or {}).get("status_code") != 200)
            finished()
            await asyncio.sleep(0)  # a line that is refused waits for nothing

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(engine.limits.parallel):
                group.create_task(work())
    except ExceptionGroup as problems:
        raise problems.exceptions[0] from None
    finally:
        lines.close()
        engine.close()


async def _answer(
    line: Line, source: BatchInput, handlers: Mapping[str, Handler], models: Collection[str] | None
) -> dict[str, Any]:
    """The output line of an input line."""
    custom_id = custom_id_of(line)
    answer: dict[str, Any] = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "custom_id": custom_id}
    try:
        if source.is_repeat(line):
            message = f"custom_id {(custom_id or '')[:100]!r} occurs in an earlier line: make it unique"
            raise ApiError(400, message, param="custom_id", code="duplicate_custom_id")
        request = read_request(line, handlers, models)
    except ApiError as problem:
        error = {**problem.body["error"], "code": problem.code or "invalid_request", "line": line.number}
        return {**answer, "response": None, "error": error}
    try:
        status, body = 200, await handlers[request.url](Fields(request.body, ""))
        assert isinstance(body, dict)  # chunks are for `stream`, which is refused
    except Exception as problem:
        failure = api_error(problem)
        if failure.code == "internal_error":
            log_failure(problem)
        status, body = failure.status, failure.body
    response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return {**answer, "response": response, "error": None}
