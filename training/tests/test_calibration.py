"""The calibration text: questions of the training split, all skills, the same text every time."""

from collections import Counter

from training.calibration import LEARNED, questions
from training.families import MAX_HOPS
from training.question import split_of


def test_every_skill_occurs_equally_often_and_only_training_questions_do() -> None:
    found = list(questions(3))
    counts = Counter((q.family, q.hops) for q in found)
    assert set(counts) == {(family, hops) for family in LEARNED for hops in range(1, MAX_HOPS[family] + 1)}
    assert set(counts.values()) == {3}
    assert {split_of(q.prompt) for q in found} == {"train"}
    assert found == list(questions(3)) != list(questions(3, seed=1))
