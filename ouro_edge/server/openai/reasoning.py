"""The deltas of one answer: reasoning as `reasoning_content` (as in DeepSeek, vLLM, llama.cpp), then content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ouro_edge.runtime.events import Token
from ouro_edge.runtime.text.reasoning import ReasoningParser, ReasoningTags, text_with_tags
from ouro_edge.server.openai.call_text import AnswerText

if TYPE_CHECKING:
    from ouro_edge.runtime.text.tokenizer import Tokenizer


class ReasoningText:
    """Running state of one answer: tokens in, deltas out. White space around the reasoning is dropped.

    `thinking` says that the prompt ends with an opening reasoning tag.
    """

    def __init__(
        self, tokenizer: Tokenizer, tags: ReasoningTags, answer: AnswerText, *, thinking: bool = False
    ) -> None:
        self._tokenizer, self._tags, self._answer = tokenizer, tags, answer
        self._splitter = ReasoningParser(tags, in_reasoning=thinking)
        self._blank = ""  # leading white space: it may precede reasoning
        self._has_thought = thinking
        self._has_reasoned = self._has_said = False  # whether any of either was sent

    def push(self, token: Token) -> dict[str, Any]:
        """The delta that is certain now."""
        return self._delta(self._splitter.push(text_with_tags(token, self._tokenizer, self._tags)))

    def finish(self) -> dict[str, Any]:
        """The rest, when the answer has ended."""
        last, end = self._delta(self._splitter.flush(), ended=True), self._answer.finish()
        content = last.pop("content", "") + end.pop("content", "")
        return {**last, **({"content": content} if content else {}), **end}

    def _delta(self, pieces: list[tuple[str, bool]], *, ended: bool = False) -> dict[str, Any]:
        thought = "".join(text for text, is_thought in pieces if is_thought)
        said = self._blank + "".join(text for text, is_thought in pieces if not is_thought)
        self._has_thought |= self._splitter.in_reasoning or bool(thought)
        if not self._has_reasoned:
            thought = thought.lstrip()
        if not self._has_said:
            said = said.lstrip() if self._has_thought else said
            said, self._blank = (said, "") if said.strip() or ended else ("", said)
        self._has_reasoned |= bool(thought)
        self._has_said |= bool(said)
        return {**({"reasoning_content": thought} if thought else {}), **self._answer.push(said)}
