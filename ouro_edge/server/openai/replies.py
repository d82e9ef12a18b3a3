"""Fields common to all answers (id, time, model name), and the token budget of an answer."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

from ouro_edge.runtime.request import token_budget
from ouro_edge.version import __version__


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """The model's name and the time of loading, in seconds since 1970."""

    model: str
    since: int

    def new(self, kind: str) -> dict[str, Any]:
        """The first fields of an answer."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": f"ouro-edge-{__version__}",
        }


def budget(prompt: int, requested: int | None, context: int) -> int:
    """The maximum number of tokens to generate: `requested`, limited to the rest of the context.

    ContextOverflowError when the prompt does not fit.
    """
    room = token_budget(prompt, None, context)
    return room if requested is None else min(requested, room)
