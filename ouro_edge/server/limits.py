"""Limits for clients: fixed limits, and the settings of one server."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BODY = 4 << 20  # bytes in a request
MAX_MESSAGES = 4096
MAX_INPUTS = 256  # prompts or texts in one request
MAX_CHOICES = 16  # answers per prompt
MAX_STOPS = 16
MAX_TOOLS = 128
MAX_SCHEMA = 1 << 17  # characters in a JSON schema
MAX_ALTERNATIVES = 20  # for top_logprobs and lens; OpenAI's limit
BODY_SECONDS = 30.0  # a client that takes longer to send its request gets 408
WRITE_SECONDS = 30.0  # a client that does not accept data for this long is disconnected
PING_SECONDS = 15.0  # between comments in a silent stream, so that proxies keep the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings of one server."""

    parallel: int = 4  # requests that run concurrently and share the model call by call
    waiting: int = 32  # requests that may wait; further requests get 429
    seconds: float = 600.0  # per request, including waiting
    grace: float = 10.0  # seconds for running requests to finish when the server stops
    cache_bytes: int = 1 << 30  # keys and values kept for later turns of conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Access control: API key, Host header, CORS."""

    api_key: str | None = None
    hosts: frozenset[str] | None = None  # allowed names in the Host header; None allows all
    origins: tuple[str, ...] = ()  # allowed origins of web pages (CORS)
