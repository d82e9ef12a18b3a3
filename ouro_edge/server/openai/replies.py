"""What every answer of the server shares: ids, time, the model's name; and how many tokens an answer may have."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

from ouro_edge.runtime.request import token_budget
from ouro_edge.version import __version__


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """The model's name and when it was loaded, in seconds since 1970."""

    model: str
    since: int

    def new(self, kind: str) -> dict[str, Any]:
        """The fields that open an answer."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": f"ouro-edge-{__version__}",
        }


def budget(prompt: int, wanted: int | None, context: int) -> int:
    """Tokens to generate at most. What a client asks for beyond the context is cut, as it says how much it would take;
    a prompt that does not fit is a ContextOverflowError.
    """
    room = token_budget(prompt, None, context)
    return room if wanted is None else min(wanted, room)
