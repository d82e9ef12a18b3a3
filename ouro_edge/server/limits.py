"""What a server grants its clients: settings of one server, and the bounds that no setting changes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BODY = 4 << 20  # bytes of a request
MAX_MESSAGES = 4096
MAX_INPUTS = 256  # prompts or texts in one request
MAX_CHOICES = 16  # answers to one prompt
MAX_STOPS = 16
MAX_TOOLS = 128
MAX_SCHEMA = 1 << 17  # characters of a JSON schema
MAX_ALTERNATIVES = 20  # top_logprobs and lens, as in OpenAI's API
BODY_SECONDS = 30.0  # a client that sends its request slower than this is cut off
WRITE_SECONDS = 30.0  # and one that does not take a piece of the answer for so long
PING_SECONDS = 15.0  # a comment in a silent stream, so that proxies do not cut it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings of one server."""

    parallel: int = 4  # requests that run at once, taking turns call by call
    waiting: int = 32  # requests that may wait for them; the next one hears 429
    seconds: float = 600.0  # for one request, waiting included
    grace: float = 10.0  # seconds that running requests get when the server stops
    cache_bytes: int = 1 << 30  # keys and values kept for later turns of a conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come in."""

    api_key: str | None = None
    hosts: frozenset[str] | None = None  # names that a Host header may have; None allows all
    origins: tuple[str, ...] = ()  # web pages that may call from elsewhere (CORS)
