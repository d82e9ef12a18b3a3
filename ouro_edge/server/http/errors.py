"""Errors in OpenAI's format: {"error": {"message", "type", "param", "code"}}, with HTTP status codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ouro_edge.errors import Cancelled, ContextOverflowError, RequestError, one_line

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer other than 2xx. `param` names the invalid field, `code` is machine-readable."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = one_line(message)  # it may quote what the client sent
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as a JSON object."""
        kind = _TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_field(param: str, message: str) -> ApiError:
    """Status 400 for one field of a request."""
    return ApiError(400, f"{param} {message}", param=param)


def api_error(problem: BaseException) -> ApiError:
    """The ApiError for any exception: client errors are 400, unexpected ones 500 without their message."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, ContextOverflowError):
        return ApiError(400, str(problem), code="context_length_exceeded")
    if isinstance(problem, RequestError):
        return ApiError(400, str(problem))
    if isinstance(problem, Cancelled):
        return ApiError(503, "the request was cancelled before it finished", code="cancelled")
    if isinstance(problem, MemoryError):
        return ApiError(503, "not enough memory for this request: try a shorter one", code="out_of_memory")
    return ApiError(500, f"the server failed with {type(problem).__name__}; see its log", code="internal_error")
