"""Separates reasoning from the answer in streamed text, by the tags that models write around reasoning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ouro_edge.runtime.events import Token

if TYPE_CHECKING:
    from ouro_edge.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The tags before and after reasoning."""

    opening: str
    closing: str


# As in published chat templates; the first pair is used by Ouro, Qwen and DeepSeek.
KNOWN = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("<thought>", "</thought>"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("[THINK]", "[/THINK]"),
)


def tags_of(template: str, is_token: Callable[[str], bool]) -> ReasoningTags:
    """The tags used in the chat template, else those in the model's vocabulary, else <think>."""
    for tags in KNOWN:
        if tags.opening in template or tags.closing in template:
            return tags
    return next((tags for tags in KNOWN if is_token(tags.opening)), KNOWN[0])


def opened_by(prompt: str, tags: ReasoningTags) -> str:
    """The opening tag at the end of a rendered prompt, with the white space after it; empty if there is none."""
    bare = prompt.rstrip()
    return prompt[len(bare) - len(tags.opening) :] if bare.endswith(tags.opening) else ""


def text_with_tags(token: Token, tokenizer: Tokenizer, tags: ReasoningTags) -> str:
    """A token's text, including tags that are special tokens, which decoding leaves out."""
    piece = tokenizer.piece(token.id) if tokenizer.is_special(token.id) else None
    return token.text + piece if piece in (tags.opening, tags.closing) else token.text


class ReasoningParser:
    """Running state of one answer: `push` returns pieces marked as reasoning or answer, without the tags.

    An opening tag counts only before the answer begins, so that an answer may mention tags.
    """

    __slots__ = ("_held", "_tags", "answered", "in_reasoning")

    def __init__(self, tags: ReasoningTags, *, in_reasoning: bool = False) -> None:
        self._tags = tags
        self._held = ""  # text that may begin a tag
        self.in_reasoning = in_reasoning
        self.answered = False

    def push(self, text: str) -> list[tuple[str, bool]]:
        """The pieces (text, is reasoning) that are final so far."""
        self._held += text
        pieces = []
        while tag := self._next_tag():
            before, found, rest = self._held.partition(tag)
            if not found or (not self.in_reasoning and before.strip()):
                break
            pieces.append((before, self.in_reasoning))
            self.in_reasoning = not self.in_reasoning
            self.answered = not self.in_reasoning
            self._held = rest
        tag = self._next_tag()
        keep = max((n for n in range(1, len(tag)) if self._held.endswith(tag[:n])), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if not self.in_reasoning and certain.strip():
            self.answered = True
        pieces.append((certain, self.in_reasoning))
        return [piece for piece in pieces if piece[0]]

    def flush(self) -> list[tuple[str, bool]]:
        """The text held back, at the end of the answer."""
        held, self._held = self._held, ""
        return [(held, self.in_reasoning)] if held else []

    def _next_tag(self) -> str:
        if self.in_reasoning:
            return self._tags.closing
        return "" if self.answered else self._tags.opening
