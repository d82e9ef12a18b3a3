"""Scenes to arrays: many questions about the same facts share one row, each blind to the others.

A row is the shared prefix (facts) followed by branches (question and answer). A branch sees the prefix and itself, and
its positions continue from the prefix, so the model computes for each question exactly what it would alone; a test
holds this. It makes a question cost a third of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .families import FAMILIES
from .question import ANSWER_TAIL, PROMPT_HEAD, PROMPT_TAIL, Question, Scene, split_of

ROW = 128  # tokens in a row; one static shape compiles once


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows with N answer tokens of Q questions."""

    ids: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    mask: Tensor  # (B, 1, T, T) bool
    at: Tensor  # (N,) places in the flattened (B*T) that predict an answer token
    labels: Tensor  # (N,)
    weight: Tensor  # (N,) sums to 1
    owner: Tensor  # (N,) index into questions
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A prefix (its own parent, no question) or a branch of a row."""

    tokens: list[int]
    parent: int
    question: Question | None = None
    answer_length: int = 0


def pick(rng: Random, scene: Scene, hops: int, split: str) -> Iterator[tuple[Question, str]]:
    """Questions of one split, every second one with the wanted number of hops: (question, tail text)."""
    tails = [t for t in scene.tails if split_of(scene.facts + t.text) == split]
    rng.shuffle(tails)
    wanted = [t for t in tails if t.hops == hops]
    others = [t for t in tails if t.hops != hops]
    while wanted or others:
        source = wanted if wanted and (not others or rng.random() < 0.6) else others
        tail = source.pop()
        yield scene.question(tail), tail.text


class Packer:
    """Turns wanted skills into batches; the only state is a tokenizer and its cache."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, rng: Random, family: str, hops: int, size: float, split: str) -> list[Segment]:
        """Scenes of one skill until the row is full."""
        segments: list[Segment] = []
        room, failures = ROW, 0
        while failures < 2 or not segments:
            scene = FAMILIES[family](rng, hops, size)
            prefix, parent = self.encode(PROMPT_HEAD + scene.facts), len(segments)
            branches, left = [], room - len(prefix)
            for question, tail in pick(rng, scene, hops, split):
                asked, answer = self.encode(tail + PROMPT_TAIL), self.encode(question.answer + ANSWER_TAIL)
                if len(asked) + len(answer) <= left:
                    branches.append(Segment(asked + answer, parent, question, len(answer)))
                    left -= len(asked) + len(answer)
            if branches:
                segments += [Segment(prefix, parent), *branches]
                room = left
            else:
                failures += 1
        return segments

    def batch(self, rng: Random, skills: Sequence[tuple[str, int, float]], split: str) -> Batch:
        """One row for each (family, hops, size)."""
        rows, t = len(skills), ROW
        ids, positions = np.zeros((rows, t), np.int64), np.zeros((rows, t), np.int64)
        own, parent = np.full((rows, t), -1, np.int64), np.full((rows, t), -1, np.int64)  # segment numbers
        at, labels, weight, owner, questions = [], [], [], [], []
        for b, (family, hops, size) in enumerate(skills):
            start, prefix_length = 0, 0
            for k, s in enumerate(self.row(rng, family, hops, size, split)):
                n, end = len(s.tokens), start + len(s.tokens)
                ids[b, start:end], own[b, start:end], parent[b, start:end] = s.tokens, k, s.parent
                positions[b, start:end] = np.arange(n) + (prefix_length if s.question else 0)
                if s.question is None:
                    prefix_length = n
                else:
                    at.extend(b * t + p - 1 for p in range(end - s.answer_length, end))
                    labels.extend(s.tokens[-s.answer_length :])
                    weight.extend([min(1.0, 3.0 / s.answer_length)] * s.answer_length)  # long answers drown no others
                    owner.extend([len(questions)] * s.answer_length)
                    questions.append(s.question)
                start = end
        see = (own[:, None, :] == own[:, :, None]) | (own[:, None, :] == parent[:, :, None])
        mask = see & np.tri(t, dtype=bool)
        weights = torch.tensor(weight)
        return Batch(
            torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(mask)[:, None],
            torch.tensor(at), torch.tensor(labels), weights / weights.sum(), torch.tensor(owner), tuple(questions),
        )  # fmt: skip
