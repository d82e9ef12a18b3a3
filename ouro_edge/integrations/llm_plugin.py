"""A plugin of Simon Willison's `llm`: `llm -m ouro-edge "question"`. Loads a model on its first use.

llm finds it by its entry point once both are installed. `-o model` names a model, the built-in one answers without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field, create_model

import ouro_edge
from ouro_edge.errors import RequestError
from ouro_edge.runtime.options import GENERATION_OPTIONS, GenerationOptions

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.sequence.sequence import TokenSequence

_TYPES: dict[str, type] = {"number": float, "whole": int, "text": str, "switch": bool}
_OPTIONS = {name: option for name, option in GENERATION_OPTIONS.items() if "llm" in option.interfaces}
_FIELDS: dict[str, Any] = {
    "model": (str | None, Field(None, description="Exported directory, checkpoint, .gguf file or hub id")),
    **{name: (_TYPES[o.kind] | None, Field(None, description=o.help)) for name, o in _OPTIONS.items()},
}


class OuroEdge(llm.Model):
    """One model for llm, whatever -o model names; it stays loaded, and so does the state of the last conversation."""

    model_id = "ouro-edge"
    can_stream = True

    Options = create_model("Options", __base__=llm.Options, **_FIELDS)

    def __init__(self) -> None:
        self._loaded: dict[str | None, Model] = {}
        self._kept: dict[tuple[str | None, str], TokenSequence] = {}  # by model and conversation; one at most

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[str]:
        """Yield the answer's text as it comes. llm shows an OuroEdgeError as one line."""
        parts = [part for message in prompt.messages for part in message.parts]
        if any(getattr(p, "attachment", None) or getattr(p, "attachments", None) for p in parts):
            raise RequestError("the prompt has an attachment; this model reads text only: leave it out")
        asked = prompt.options
        options = GenerationOptions(**{name: getattr(asked, name) for name in _OPTIONS})
        model = self._loaded.get(asked.model) or self._loaded.setdefault(asked.model, ouro_edge.load(asked.model))
        arguments = options.arguments(model)
        key = (asked.model, conversation.id if conversation else "")
        sequence = self._kept.pop(key, None) or model.new_sequence()  # taken out: one answer at a time uses it
        arguments["sequence"] = sequence
        messages = [
            {"role": message.role, "content": "".join(getattr(part, "text", "") for part in message.parts)}
            for message in prompt.messages
        ]
        for event in model.chat(messages, **arguments):
            if isinstance(event, ouro_edge.Token):
                yield event.text
            else:
                usage = event.usage
                details = {"mean_depth": usage.mean_depth, "loops_saved": usage.loops_saved}
                response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens, details=details)
        self._kept = {key: sequence}


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Called by llm."""
    register(OuroEdge())
