"""The lines of a batch file: reading them one at a time, and checking one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any

from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.http.fields import Fields, parse_json
from ouro_edge.server.limits import MAX_BODY

MAX_LINE = MAX_BODY + (1 << 16)  # bytes: a body as the server accepts it, and the fields around it
_MAX_ID = 512  # characters of a custom_id


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank; `data` is None if it is longer than MAX_LINE."""

    number: int  # from 1
    data: bytes | None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A checked line."""

    url: str
    body: dict[str, Any]


def read_lines(file: IO[bytes]) -> Iterator[Line]:
    """The lines that are not blank, each read when it is requested."""
    number = 0
    while data := file.readline(MAX_LINE + 1):
        number += 1
        if len(data) > MAX_LINE and not data.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield Line(number, None)
            continue
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.isspace() and data:
            yield Line(number, data)


def custom_id_of(line: Line) -> str | None:
    """The custom_id of a line, None where it has none that is valid."""
    try:
        return _custom_id(_fields(line))
    except ApiError:
        return None


def read_request(line: Line, urls: Collection[str], models: Collection[str] | None) -> BatchRequest:
    """The request of a line. ApiError for anything else; `models` are the names that a body may give, None for all."""
    fields = _fields(line)
    _custom_id(fields)
    method = fields.required("method", fields.text("method"))
    if method != "POST":
        raise ApiError(400, f"method is {method[:40]!r}; expected POST", param="method", code="invalid_method")
    url = fields.required("url", fields.text("url"))
    if url not in urls:
        expected = ", ".join(urls)
        raise ApiError(404, f"url is {url[:100]!r}; expected one of {expected}", param="url", code="invalid_url")
    body = dict(fields.required("body", fields.mapping("body")))
    fields.finish()
    name = body.get("model")
    if models is not None and isinstance(name, str) and name not in models:
        raise ApiError(
            404,
            f"model {name[:100]!r} is not loaded; expected {' or '.join(sorted(models))}, or the option --any-model",
            param="body.model",
            code="model_not_found",
        )
    if body.get("stream"):
        raise ApiError(400, "stream is true; a batch has complete answers only, so omit it", param="body.stream")
    return BatchRequest(url, body)


def _fields(line: Line) -> Fields:
    if line.data is None:
        raise ApiError(413, f"the line is longer than {MAX_LINE} bytes", code="line_too_long")
    try:
        return parse_json(line.data)
    except ApiError as problem:
        raise ApiError(400, problem.message.replace("the body", "the line", 1), code="invalid_json_line") from None


def _custom_id(fields: Fields) -> str:
    value = fields.required("custom_id", fields.text("custom_id"))
    if not 0 < len(value) <= _MAX_ID:
        raise ApiError(400, f"custom_id has {len(value)} characters; expected 1 to {_MAX_ID}", param="custom_id")
    return value
