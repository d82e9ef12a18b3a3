"""Families of questions without facts: weekdays and small sums, hops = the number of operations.

reasoning-gym has both (calendar_arithmetic, chain_sum), but in long prose, without a hop count and with results of
several digits, which cost a tiny model several tokens each; so these two are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .question import Scene, Tail

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
QUESTIONS_PER_SCENE = 12


def days(rng: Random, hops: int, size: float) -> Scene:
    """`What day is 2 days after 3 days before Monday?`; small steps first, up to 6."""
    most = 3 if size < 0.5 else 6
    tails = []
    for _ in range(QUESTIONS_PER_SCENE):
        h, day = rng.randint(1, hops), rng.randrange(7)
        at, words = day, ""
        for _ in range(h):
            step, sign = rng.randint(1, most), rng.choice((1, -1))
            at = (at + sign * step) % 7
            words = f" {step} days {'after' if sign > 0 else 'before'}{words}"
        tails.append(Tail(h, f"What day is{words} {DAYS[day]}?", DAYS[at]))
    return Scene("days", "", tuple(tails))


def sums(rng: Random, hops: int, size: float) -> Scene:
    """`What is 3 + 5 - 2?`; every intermediate result is one digit."""
    tails = []
    for _ in range(QUESTIONS_PER_SCENE):
        h, value = rng.randint(1, hops), rng.randrange(10)
        words = str(value)
        for _ in range(h):
            wanted = rng.randrange(10)
            words += f" + {wanted - value}" if wanted >= value else f" - {value - wanted}"
            value = wanted
        tails.append(Tail(h, f"What is {words}?", str(value)))
    return Scene("sums", "", tuple(tails))


NUMBERS: dict[str, Callable[[Random, int, float], Scene]] = {"days": days, "sums": sums}
