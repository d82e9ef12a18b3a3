"""Thought and answer told apart while a text streams. Knows the tags that models think in; nothing of who reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ouro_edge.runtime.events import Token

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands before and after a thought."""

    opening: str
    closing: str


# As published chat templates spell them; the first is what Ouro, Qwen and DeepSeek use.
KNOWN = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("<thought>", "</thought>"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("[THINK]", "[/THINK]"),
)


def tags_of(template: str, is_token: Callable[[str], bool]) -> ReasoningTags:
    """The tags that the chat template names, else those that are tokens of the model, else <think>."""
    for tags in KNOWN:
        if tags.opening in template or tags.closing in template:
            return tags
    return next((tags for tags in KNOWN if is_token(tags.opening)), KNOWN[0])


def read_reasoning_tags(model: Model) -> ReasoningTags:
    """The tags of a model with a tokenizer, from its files."""
    template = model.bundle.text("chat_template.jinja") or ""
    return tags_of(template, lambda text: model.tokenizer.token_id(text) is not None)


def opened_by(prompt: str, tags: ReasoningTags) -> str:
    """The opening tag with which a template has begun the answer, and what follows it; else nothing."""
    bare = prompt.rstrip()
    return prompt[len(bare) - len(tags.opening) :] if bare.endswith(tags.opening) else ""


def text_with_tags(token: Token, tokenizer: Tokenizer, tags: ReasoningTags) -> str:
    """A token's text, with the tags that are special tokens: readers never see those otherwise."""
    piece = tokenizer.piece(token.id) if tokenizer.is_special(token.id) else None
    return token.text + piece if piece in (tags.opening, tags.closing) else token.text


class ReasoningParser:
    """Running state of one answer: `push` text, get pieces marked as thought or not, without the tags.

    An opening tag counts only before anything was answered, so that an answer may speak about tags.
    """

    __slots__ = ("_held", "_tags", "answered", "thinking")

    def __init__(self, tags: ReasoningTags, *, thinking: bool = False) -> None:
        self._tags = tags
        self._held = ""  # what may be the beginning of a tag
        self.thinking = thinking
        self.answered = False

    def push(self, text: str) -> list[tuple[str, bool]]:
        """The pieces (text, is thought) that are certain now."""
        self._held += text
        pieces = []
        while tag := self._next_tag():
            before, found, rest = self._held.partition(tag)
            if not found or (not self.thinking and before.strip()):
                break
            pieces.append((before, self.thinking))
            self.thinking = not self.thinking
            self.answered = not self.thinking
            self._held = rest
        tag = self._next_tag()
        keep = max((n for n in range(1, len(tag)) if self._held.endswith(tag[:n])), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if not self.thinking and certain.strip():
            self.answered = True
        pieces.append((certain, self.thinking))
        return [piece for piece in pieces if piece[0]]

    def flush(self) -> list[tuple[str, bool]]:
        """What was held back, when the answer has ended."""
        held, self._held = self._held, ""
        return [(held, self.thinking)] if held else []

    def _next_tag(self) -> str:
        if self.thinking:
            return self._tags.closing
        return "" if self.answered else self._tags.opening
