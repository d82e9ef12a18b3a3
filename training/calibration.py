"""Text for calibrated rounding: questions of the training split with their answers, as the chat template writes them.

    python -m training.calibration > FILE        # then: ouro-edge export ... --calibration FILE

Every family and number of hops that the shipped model has learned occurs equally often. Needs no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from random import Random

from .families import FAMILIES, MAX_HOPS
from .question import Question, split_of

LEARNED = ("assistant", "boss", "compare", "likes", "mixed")


def questions(per_skill: int, seed: int = 0) -> Iterator[Question]:
    """`per_skill` questions of each skill in turn, so that any beginning of the text has all of them."""
    rng = Random(f"{seed}/calibration")
    skills = [(family, hops) for family in LEARNED for hops in range(1, MAX_HOPS[family] + 1)]
    for _ in range(per_skill):
        for family, hops in skills:
            yield question(rng, family, hops)


def question(rng: Random, family: str, hops: int, split: str = "train") -> Question:
    """A random question of a skill."""
    while True:
        scene = FAMILIES[family](rng, hops, rng.random())
        tails = [t for t in scene.tails if t.hops == hops and split_of(scene.facts + t.text) == split]
        if tails:
            return scene.question(rng.choice(tails))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training.calibration", description="Print a calibration text.")
    parser.add_argument("--per-skill", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("\n".join(q.text for q in questions(options.per_skill, options.seed)))
