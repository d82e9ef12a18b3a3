"""What a question is, and the split that keeps test questions out of training.

A Scene is a set of facts with several questions about them. Only the batching knows that they share their facts: each
question is asked, evaluated and hashed on its own, as `facts + tail`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
PROMPT_HEAD = "<|im_start|>user\n"
PROMPT_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
ANSWER_TAIL = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Question:
    """One single-turn exchange; `hops` is the number of dependent steps from the prompt to the answer."""

    family: str
    hops: int
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return PROMPT_HEAD + self.prompt + PROMPT_TAIL + self.answer + ANSWER_TAIL


@dataclass(frozen=True, slots=True)
class Tail:
    """The part of a question that follows the facts; begins with a space wherever there are facts."""

    hops: int
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    family: str
    facts: str
    tails: tuple[Tail, ...]

    def question(self, tail: Tail) -> Question:
        return Question(self.family, tail.hops, self.facts + tail.text, tail.answer)


def split_of(prompt: str) -> str:
    """5% test, 5% validation, the rest training, by a hash of the whole prompt: the same in every run and version."""
    bucket = hashlib.sha256(prompt.encode()).digest()[0] % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")
