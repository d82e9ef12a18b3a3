"""Would drafts at different loops in one call be faster? `python benchmarks/wavefront.py MODEL --kv int8`

Compares two ways to verify drafts without changing an answer, by simulation with the measured costs of calls:

- chunks (what the runtime does): loop 1 drafts up to n tokens, one call each; the deeper loops then compute the rows of
  all of them in one call each.
- wavefront: one call per step, in which token t is at loop 4, its draft t + 1 at loop 3, and so on. Every step yields a
  token, until a draft turns out wrong; then the positions behind it are dropped.

Drafts of loop 1 are right by chance with a given probability, or are those of Ouro-nano in its sentences. The costs of
calls are measured on MODEL (the least of several rounds, which other load on the machine affects least): rows at
different loops have separate KV caches, so a wavefront's call is one of a model loaded with `parallel`, while the rows
of a chunk share a cache and need no such model. `--costs` takes the printed costs of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import product

import numpy as np
from speculation import LONG

import ouro_edge
from ouro_edge.measure.context import filled_sequence
from ouro_edge.runtime.backend.protocol import RowGroup

LOOPS = 4
MAX_DRAFTS = 8
MIN_CONFIDENCE = 0.5  # as in ouro_edge/runtime/speculation/draft_policy.py


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of calls; index 0 is one row."""

    chunk: tuple[float, ...]  # rows of one cache
    caches: tuple[float, ...]  # one row of each of several caches
    head: float  # of one row; further rows add `head_row`
    head_row: float

    def head_call(self, rows: int) -> float:
        """A head call."""
        return self.head + self.head_row * (rows - 1)


@dataclass(frozen=True, slots=True)
class Draft:
    """What loop 1 guesses at a position that continues from right tokens."""

    confident: bool  # otherwise no position is begun after it
    right: bool


def chunks(costs: Costs, drafts: Sequence[Draft], most: int) -> float:
    """Milliseconds per token with chunks of at most so many positions."""
    spent, at = 0.0, 0
    while at < len(drafts):
        rows, kept = 1, 1
        while rows < most and at + rows < len(drafts):
            # A position that continues from a wrong guess is as confident as the one that was replaced.
            if not drafts[at + rows - 1].confident:
                break
            rows += 1
        while kept < rows and drafts[at + kept - 1].right:
            kept += 1
        heads = (rows if rows < most else rows - 1) * costs.head_call(1) if most > 1 else 0.0
        spent += rows * costs.chunk[0] + heads + (LOOPS - 1) * costs.chunk[rows - 1] + costs.head_call(rows)
        at += kept
    return spent / len(drafts)


def wavefront(costs: Costs, drafts: Sequence[Draft]) -> float:
    """Milliseconds per token with steps; `loops` holds the loops that each position in flight has run, oldest first."""
    spent, done, loops = 0.0, 0, [0]
    while done < len(drafts):
        spent += costs.caches[len(loops) - 1]
        loops = [loop + 1 for loop in loops]
        newest = drafts[min(done + len(loops), len(drafts)) - 1]
        # The head sees a position that loop 1 has run, to guess what follows it, and one that has run all loops.
        seen = (loops[-1] == 1) + (loops[0] == LOOPS)
        spent += costs.head_call(seen) if seen else 0.0
        if loops[0] < LOOPS and not (loops[-1] == 1 and newest.confident):
            continue
        if loops[-1] == 1 and newest.confident:
            loops.append(0)
        if loops[0] == LOOPS:
            right = drafts[done].right
            done += 1
            loops = loops[1:] if right and len(loops) > 1 else [0]
    return spent / len(drafts)


def by_chance(right: float, count: int = 20_000, seed: int = 0) -> list[Draft]:
    """Drafts that are right with a probability, and always extended."""
    rng = random.Random(seed)
    return [Draft(True, rng.random() < right) for _ in range(count)]


def of_nano() -> list[Draft]:
    """What loop 1 of Ouro-nano guesses in its sentences, and how confident it is, at full depth."""
    drafts = []
    with ouro_edge.load() as model:
        for prompt in LONG:
            messages = [{"role": "user", "content": prompt}]
            full, greedy = ouro_edge.FullDepth(), ouro_edge.Sampler()
            events = model.chat(messages, max_tokens=100, exit=full, sampler=greedy, logit_lens=1, speculate=False)
            for token in list(events)[1:-1]:
                assert isinstance(token, ouro_edge.Token)
                [(guess, probability)] = token.logit_lens[0]
                drafts.append(Draft(probability >= MIN_CONFIDENCE, guess == token.id))
    return drafts


def table(costs: Costs, traces: dict[str, Sequence[Draft]]) -> str:
    """Markdown: speed compared with no drafts."""
    lines = ["| drafts | right | chunks | of at most | wavefront | wavefront / chunks |", "| --- " * 6 + "|"]
    plain = LOOPS * costs.chunk[0] + costs.head_call(1)
    for name, drafts in traces.items():
        times = {n: chunks(costs, drafts, n) for n in range(1, MAX_DRAFTS + 1)}
        best, wave = min(times, key=times.__getitem__), wavefront(costs, drafts)
        share = sum(draft.right for draft in drafts) / len(drafts)
        lines.append(f"| {name} | {share:.2f} | {plain / times[best]:.2f} | {best} | {plain / wave:.2f} "
                     f"| {times[best] / wave:.2f} |")  # fmt: skip
    return "\n".join(lines)


def measure(model: str, kv: str, rounds: int = 12, context: int = 128) -> Costs:
    """Costs of calls after `context` positions."""
    rng = np.random.default_rng(0)
    tests: dict[tuple[str, int], Callable[[], object]] = {}
    with ouro_edge.load(model, kv=kv) as alone, ouro_edge.load(model, kv=kv, parallel=LOOPS) as together:  # type: ignore[arg-type]
        sequence = filled_sequence(alone, context, LOOPS, MAX_DRAFTS, rng)
        wave = filled_sequence(together, context, LOOPS, MAX_DRAFTS, rng)
        states = rng.standard_normal((MAX_DRAFTS, alone.backend.program.width), np.float32)
        for n in range(1, MAX_DRAFTS + 1):
            tests["chunk", n] = partial(alone.backend.run, [RowGroup(sequence.kv_of(2), context, states[:n])])
        for n in range(1, LOOPS + 1):
            groups = [RowGroup(wave.kv_of(loop), context, states[:1]) for loop in range(1, n + 1)]
            tests["caches", n] = partial(together.backend.run, groups)
        tests |= {("head", n): partial(alone.backend.head, states[:n]) for n in (1, LOOPS)}
        best = dict.fromkeys(tests, float("inf"))
        for _, test in product(range(rounds), tests):
            began = time.perf_counter()
            tests[test]()
            best[test] = min(best[test], 1e3 * (time.perf_counter() - began))
    chunk, caches = (tuple(ms for (kind, _), ms in best.items() if kind == name) for name in ("chunk", "caches"))
    return Costs(chunk, caches, best["head", 1], (best["head", LOOPS] - best["head", 1]) / (LOOPS - 1))


def main() -> None:
    """Measure, or take costs, and print a table over draft accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--costs", help="costs as this program prints them")
    options = parser.parse_args()
    if (options.model is None) == (options.costs is None):
        parser.error("give MODEL or --costs")
    if options.model:
        costs = measure(options.model, options.kv)
    else:
        chunk, caches, head, head_row = json.loads(options.costs)
        costs = Costs(tuple(chunk), tuple(caches), head, head_row)
    rounded = [[round(n, 1) for n in cost] if isinstance(cost, tuple) else round(cost, 1) for cost in astuple(costs)]
    print(f"costs in milliseconds: {json.dumps(rounded)}\n")
    traces: dict[str, Sequence[Draft]] = {
        f"by chance, {right}": by_chance(right) for right in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
    }
    print(table(costs, traces | {"nano's sentences": of_nano()}))


if __name__ == "__main__":
    main()
