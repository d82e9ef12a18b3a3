"""Families of questions about small worlds of people, each with a true number of hops.

Every function draws one Scene: (rng, hops, size) -> facts and many questions up to `hops`. `size` in [0, 1] widens the
world from the smallest that gives no shortcut away to the largest. On a cycle of n people h steps forward are n - h
steps back, so a cycle has n >= 2h + 1 people; on a chain the answer is often, but not always, its end.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from .question import Scene, Tail

NAMES = tuple(
    "Ada Ben Cleo Dan Eve Finn Gus Hana Ivy Jack Kim Leo Mia Ned Olga Paul Rosa Sam Tess Uma Vera Will Yuri Zoe".split()
)
THINGS = tuple("cup hat key map pen ring book lamp ball coin drum flag".split())
MAX_PEOPLE = 9


def _people(rng: Random, least: int, most: int, size: float) -> list[str]:
    most = max(least, min(MAX_PEOPLE, round(least + (most - least) * size)))
    return rng.sample(NAMES, rng.randint(least, most))


def likes(rng: Random, hops: int, size: float) -> Scene:
    """Pointers: everyone likes one person; a cycle where that gives no shortcut, else (or by chance) an open chain."""
    people = _people(rng, hops + 2, MAX_PEOPLE, size)
    n = len(people)
    onward = dict(pairwise(people))
    if n > 2 * hops and rng.random() < 0.5:
        onward[people[-1]] = people[0]
    facts = [f"{a} likes {b}." for a, b in onward.items()]
    rng.shuffle(facts)
    tails = []
    for person in onward:
        at = person
        for h in range(1, hops + 1):
            if at not in onward:
                break
            at = onward[at]
            tails.append(Tail(h, f" {person} likes{' someone who likes' * (h - 1)} who?", at))
    return Scene("likes", " ".join(facts), tuple(tails))


def boss(rng: Random, hops: int, size: float) -> Scene:
    """Chain of command: a tree in which every branch is long enough; asked from below, told from above."""
    people = _people(rng, hops + 2, MAX_PEOPLE, size)
    above: dict[str, str] = {}
    for i, person in enumerate(people[1:], 1):
        # Mostly a chain, sometimes a fork: so bosses have several people and depth does not follow from position.
        above[person] = people[i - 1] if i <= hops or rng.random() < 0.7 else rng.choice(people[:i])
    facts = [f"{b} leads {a}." for a, b in above.items()]
    rng.shuffle(facts)
    tails = []
    for person in people[1:]:
        top = person
        for h in range(1, hops + 1):
            if top not in above:
                break
            top = above[top]
            tails.append(Tail(h, " Who is " + person + "'s boss" * h + "?", top))
    return Scene("boss", " ".join(facts), tuple(tails))


def mixed(rng: Random, hops: int, size: float) -> Scene:
    """Both relations over the same people: up the chain of command first, then along the likes."""
    people = _people(rng, hops + 2, 7, size)
    order = rng.sample(people, len(people))
    above = dict(zip(people[1:], people, strict=False))
    onward = dict(pairwise(order))
    facts = [f"{b} leads {a}." for a, b in above.items()] + [f"{a} likes {b}." for a, b in onward.items()]
    rng.shuffle(facts)
    tails = []
    for person in people:
        top = person
        for up in range(hops + 1):
            at, who = top, person + "'s boss" * up
            if up == 1:
                tails.append(Tail(1, f" Who is {who}?", at))
            for along in range(1, hops - up + 1):
                if at not in onward:
                    break
                at = onward[at]
                if up or along == 1:
                    middle = " someone who likes" * (along - 1)
                    tails.append(Tail(up + along, f" {who} likes{middle} who?", at))
            if top not in above:
                break
            top = above[top]
    return Scene("mixed", " ".join(facts), tuple(tails))


def compare(rng: Random, hops: int, size: float) -> Scene:
    """Transitive comparison: who of two is taller, h links apart. Chance is one half."""
    people = _people(rng, hops + 2, 8, size)
    adjective = rng.choice(("taller", "older", "faster"))
    facts = [f"{a} is {adjective} than {b}." for a, b in pairwise(people)]
    rng.shuffle(facts)
    tails = []
    for i, a in enumerate(people):
        for h in range(1, min(hops, len(people) - 1 - i) + 1):
            pair = [a, people[i + h]]
            rng.shuffle(pair)
            tails.append(Tail(h, f" Who is {adjective}, {pair[0]} or {pair[1]}?", a))
    return Scene("compare", " ".join(facts), tuple(tails))


def swaps(rng: Random, hops: int, size: float) -> Scene:
    """Who holds what after people have swapped; hops = 1 + the swaps that moved the thing that is asked for."""
    people = _people(rng, 3, 5, size)
    things = rng.sample(THINGS, len(people))
    holder = dict(zip(things, people, strict=True))
    moved = dict.fromkeys(things, 1)
    facts = [f"{p} has the {t}." for t, p in holder.items()]
    rng.shuffle(facts)
    # Random swaps while nothing has moved more often than allowed.
    for _ in range(rng.randint(1, round((hops - 1) * (1 + 0.7 * size)) or 1) if hops > 1 else 0):
        a, b = rng.sample(things, 2)
        if max(moved[a], moved[b]) >= hops:
            continue
        pair = [holder[a], holder[b]]
        holder[a], holder[b] = holder[b], holder[a]
        moved[a], moved[b] = moved[a] + 1, moved[b] + 1
        rng.shuffle(pair)
        facts.append(f"{pair[0]} and {pair[1]} swap.")
    tails = [Tail(moved[t], f" Who has the {t}?", holder[t]) for t in things]
    return Scene("swaps", " ".join(facts), tuple(tails))


WORLDS: dict[str, Callable[[Random, int, float], Scene]] = {
    "likes": likes,
    "boss": boss,
    "mixed": mixed,
    "compare": compare,
    "swaps": swaps,
}
