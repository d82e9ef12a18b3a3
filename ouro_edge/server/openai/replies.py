"""Fields common to all answers (id, time, model name); the token budget and the prefix of an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouro_edge.runtime.request import token_budget
from ouro_edge.runtime.sequence.prefix import check_prefix
from ouro_edge.server.options import Options
from ouro_edge.version import __version__

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model


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


def prefix_of(model: Model, options: Options, ids: Sequence[int], *, is_text: bool = True) -> int:
    """Tokens of the prompt that see each other in both directions: as requested, else all of a text, none of ids.

    RequestError when the model or the prompt does not allow the requested number.
    """
    if options.prefix is not None:
        return check_prefix(model.config, options.prefix, len(ids))
    return model.prefix_of(ids) if is_text else 0
