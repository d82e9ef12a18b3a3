"""What to practise next: a skill is (family, hops), opened only when the ones before it are mastered.

Mixed families from the start stay at guessing, so: one family and one hop first, then a hop, then families one at a
time with replay; worlds widen only where they are already mastered. Training data never repeats, so the running
accuracy on it is an honest measure of competence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

Skill = tuple[str, int]
PLAN: tuple[Skill, ...] = (
    ("likes", 1), ("likes", 2), ("boss", 1), ("boss", 2), ("likes", 3), ("boss", 3), ("compare", 1),
    ("assistant", 1), ("likes", 4), ("boss", 4), ("mixed", 1), ("mixed", 2), ("mixed", 3), ("mixed", 4),
    ("compare", 2), ("compare", 3), ("compare", 4),
)  # fmt: skip
# Not learned in the time that the shipped model had; --more true puts them behind the others.
MORE: tuple[Skill, ...] = tuple((family, hops) for hops in range(1, 5) for family in ("swaps", "sums", "days"))
MASTERED = 0.93
PATIENCE = 3000  # steps after which an unmastered skill no longer holds up the ones behind it
AVERAGE = 0.95  # decay of the running accuracy, per batch in which the skill occurs


@dataclass(slots=True)
class Progress:
    """Running state of one skill."""

    accuracy: float = 0.0
    shallow: float = 0.0  # accuracy after one loop
    opened: int = -1  # step
    mastered: int = -1  # step
    size: float = 0.0  # width of its worlds


@dataclass(slots=True)
class Curriculum:
    plan: tuple[Skill, ...] = PLAN
    progress: dict[Skill, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.progress = {s: self.progress.get(s, Progress()) for s in self.plan}

    def frontier(self, step: int) -> list[Skill]:
        """Unmastered skills to work on: one until the first family has two hops, then two, later three at a time."""
        width = 1 + (self.mastered >= 2) + (self.mastered >= 5)
        out: list[Skill] = []
        for skill in self.plan:
            family, hops = skill
            p = self.progress[skill]
            ready = hops == 1 or self.progress[family, hops - 1].mastered >= 0
            if p.mastered >= 0 or not ready:
                continue
            if p.opened < 0:
                p.opened = step
            if step - p.opened > PATIENCE:
                continue
            out.append(skill)
            if len(out) == width:
                break
        return out

    @property
    def mastered(self) -> int:
        return sum(p.mastered >= 0 for p in self.progress.values())

    def draw(self, rng: Random, rows: int, step: int) -> list[tuple[str, int, float]]:
        """Half of the rows for the frontier, half for replay of what is open, weakest first."""
        frontier = self.frontier(step)
        known = [s for s in self.plan if s not in frontier and self.progress[s].opened >= 0]
        weights = [0.1 + (1 - self.progress[s].accuracy) for s in known]
        out = []
        for i in range(rows):
            skill = rng.choice(frontier) if frontier and (not known or i % 2) else rng.choices(known, weights)[0]
            # A mastered world is drawn anywhere between its smallest and its present width.
            out.append((*skill, self.progress[skill].size * rng.random() ** 0.5))
        return out

    def record(self, step: int, results: Iterable[tuple[Skill, float, float]]) -> None:
        """Take in (skill, accuracy at full depth, accuracy after one loop) of one batch."""
        for skill, full, shallow in results:
            p = self.progress[skill]
            if p.opened < 0:
                continue
            p.accuracy = AVERAGE * p.accuracy + (1 - AVERAGE) * full
            p.shallow = AVERAGE * p.shallow + (1 - AVERAGE) * shallow
            if p.accuracy >= MASTERED:
                p.mastered = step if p.mastered < 0 else p.mastered
                p.size = min(1.0, p.size + 0.005)

    def state(self) -> list:
        return [[list(s), p.accuracy, p.shallow, p.opened, p.mastered, p.size] for s, p in self.progress.items()]

    @classmethod
    def restore(cls, state: list, plan: tuple[Skill, ...] = PLAN) -> Curriculum:
        return cls(plan, {(s[0], s[1]): Progress(*rest) for s, *rest in state})
