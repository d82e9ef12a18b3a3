"""A plugin of Simon Willison's `llm`: `llm -m ouro-edge "question"`. Knows llm's hooks; loads a model when asked to.

llm finds it by its entry point once both are installed. `-o model` names a model, the built-in one answers without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

import ouro_edge

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.sequence.sequence import TokenSequence


class OuroEdge(llm.Model):
    """One model for llm, whatever -o model names; it stays loaded, and so does the state of the last conversation."""

    model_id = "ouro-edge"
    can_stream = True

    class Options(llm.Options):
        model: str | None = Field(None, description="Exported directory, checkpoint, .gguf file or hub id")
        exit_threshold: float | None = Field(None, description="Stop looping at this exit probability, 0 to 1")
        loops: int | None = Field(None, description="Exactly this many loops for every token")
        max_tokens: int | None = Field(None, description="At most this many tokens")
        temperature: float | None = Field(None, description="0 is greedy; default: the model's own")
        top_p: float | None = Field(None, description="Sample from the smallest set with this probability")
        seed: int | None = Field(None, description="Make sampling repeatable")

    def __init__(self) -> None:
        self._loaded: dict[str | None, Model] = {}
        self._kept: dict[tuple[str | None, str], TokenSequence] = {}  # by model and conversation; one at most

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[str]:
        """Yield the answer's text as it comes. llm shows an OuroEdgeError as one line."""
        asked = prompt.options
        model = self._loaded.get(asked.model) or self._loaded.setdefault(asked.model, ouro_edge.load(asked.model))
        key = (asked.model, conversation.id if conversation else "")
        sequence = self._kept.pop(key, None) or model.new_sequence()  # taken out, so that nobody else uses it now
        changes = {name: getattr(asked, name) for name in ("temperature", "top_p", "seed")}
        depth: ouro_edge.ExitPolicy | None = None
        if asked.exit_threshold is not None:
            depth = ouro_edge.ExitThreshold(asked.exit_threshold, ceiling=asked.loops)
        elif asked.loops is not None:
            depth = ouro_edge.FixedDepth(asked.loops)
        messages = [
            {"role": message.role, "content": "".join(getattr(part, "text", "") for part in message.parts)}
            for message in prompt.messages
        ]
        sampler = model.default_sampler(**{name: value for name, value in changes.items() if value is not None})
        for event in model.chat(messages, exit=depth, sampler=sampler, max_tokens=asked.max_tokens, sequence=sequence):
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
