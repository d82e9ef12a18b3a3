"""The list of all families, and the corpus that the tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .assistant import assistant
from .counting import DAYS, NUMBERS
from .question import Scene
from .worlds import NAMES, THINGS, WORLDS

FAMILIES: dict[str, Callable[[Random, int, float], Scene]] = WORLDS | NUMBERS | {"assistant": assistant}
MAX_HOPS = dict.fromkeys(FAMILIES, 4) | {"assistant": 1}


def tokenizer_corpus(seed: int, scenes: int = 3000) -> Iterator[str]:
    """Questions of every family, and each closed-class word often enough to become one token in both its forms."""
    rng = Random(f"{seed}/tokenizer")
    for i in range(scenes):
        family = tuple(FAMILIES)[i % len(FAMILIES)]
        scene = FAMILIES[family](rng, MAX_HOPS[family], rng.random())
        for tail in scene.tails[:4]:
            yield scene.question(tail).text
    for word in (*NAMES, *DAYS, *THINGS):
        yield from [f"{word} {word}"] * 300
