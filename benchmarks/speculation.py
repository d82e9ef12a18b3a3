"""Savings by speculation: `python benchmarks/speculation.py [MODEL] --most 10`. Default: the built-in Ouro-nano.

Answers held-out questions in benchmarks/nano with and without speculation and checks that the answers are equal. Calls
after the first token are counted and priced like calls of the 1.4B in int4 on a 2-core machine (a block call of 1, 2,
4, 8 rows costs 1, 1.17, 1.56 and 2.4 units of 37 ms, a head call 0.15 units; `--prices` takes those of another machine,
which `wavefront.py` measures); `DraftPolicy` gets these prices instead of a clock. "fresh" questions have a new
sequence each, without estimates; in a "chat" the estimates come from earlier answers. Tokens per second are measured
separately, with nano's costs and a real clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import ouro_edge
from ouro_edge.runtime.speculation.draft_policy import DraftPolicy
from ouro_edge.testing import MeteredBackend

DATA = Path(__file__).parent / "nano"
ROWS, PRICES = (1, 2, 4, 8), (1.0, 1.17, 1.56, 2.4)
HEAD_CALL_LOOPS = 0.15
PER_ROW = 0.21  # price of a further row beyond 8
LONG = (  # prompts whose answers are sentences
    "Tell me what you can do",
    "Explain how you think",
    "What is the capital of France?",
    "Write me a poem about rivers",
    "Help",
    "Who are you?",
    "How do you work?",
    "Tell me a story",
)


@dataclass(slots=True)
class Meter:
    """Counts and prices the calls of a sequence; replaces the clock."""

    prices: tuple[float, ...] = PRICES
    price: float = 0.0
    calls: int = 0
    rows: int = 0
    heads: int = 0

    def block(self, rows: int) -> None:
        """A block call."""
        self.price += self.of(rows)
        self.calls += 1
        self.rows += rows

    def head(self, rows: int) -> None:
        """A head call."""
        self.price += HEAD_CALL_LOOPS * self.of(rows)
        self.heads += 1

    def of(self, rows: int) -> float:
        """The price of a block call."""
        return float(np.interp(rows, ROWS, self.prices)) + PER_ROW * max(0, rows - ROWS[-1])

    def now(self) -> float:
        """The time, in units of a block call of one row."""
        return self.price


@dataclass(slots=True)
class Outcome:
    """Sums over the answers of one kind."""

    answers: list[list[tuple[int, int]]] = field(default_factory=list)  # (id, depth) of each token
    later: int = 0  # tokens after the first of each answer
    price: float = 0.0
    counts: tuple[int, int, int] = (0, 0, 0)  # block calls, rows, head calls
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0

    @property
    def per_token(self) -> float:
        """Price of a token after the first."""
        return self.price / self.later


def answer(
    model: ouro_edge.Model,
    prompts: list[str],
    policy: ouro_edge.ExitPolicy,
    speculate: bool,
    keep: bool,
    prices: tuple[float, ...] | None,
) -> Outcome:
    """Greedy answers to all prompts; with `keep`, drafting estimates are kept between prompts. No prices: a clock."""
    out, drafts, meter = Outcome(), None, Meter(prices or PRICES)
    if prices:
        model = ouro_edge.Model(MeteredBackend(model.backend, on_block=meter.block, on_head=meter.head), model.text)
    for prompt in prompts:
        if drafts is None or not keep:
            drafts = DraftPolicy(model.config.loops, clock=meter.now if prices else time.perf_counter)
        tokens: list[tuple[int, int]] = []
        messages, greedy = [{"role": "user", "content": prompt}], ouro_edge.Sampler()
        drafting = drafts if speculate else False
        for event in model.chat(messages, exit=policy, sampler=greedy, speculate=drafting, max_tokens=100):
            if isinstance(event, ouro_edge.Token):
                if not tokens:
                    began, before = time.perf_counter(), (meter.price, meter.calls, meter.rows, meter.heads)
                tokens.append((event.id, event.depth))
            else:
                out.seconds += time.perf_counter() - began
                out.drafted += event.usage.drafted_tokens
                out.accepted += event.usage.accepted_tokens
        price, *counts = (
            a - b for a, b in zip((meter.price, meter.calls, meter.rows, meter.heads), before, strict=True)
        )
        out.price += price
        out.counts = tuple(a + b for a, b in zip(out.counts, counts, strict=True))
        out.answers.append(tokens)
        out.later += len(tokens) - 1
    return out


def kinds(most: int) -> dict[str, tuple[list[str], bool]]:
    """Prompts by name, and whether estimates are kept between them."""
    asked = [json.loads(line) for line in (DATA / "questions.test.jsonl").read_text(encoding="utf-8").splitlines()]
    groups: dict[str, list[str]] = {"puzzles": [], "assistant": []}
    counts: dict[tuple[str, int], int] = {}
    for question in asked:
        key = question["family"], question["hops"]
        counts[key] = counts.get(key, 0) + 1
        if (question["family"] == "assistant" and counts[key] <= 4 * most) or counts[key] <= most:
            groups["assistant" if question["family"] == "assistant" else "puzzles"].append(question["prompt"])
    return {
        "puzzles, fresh": (groups["puzzles"], False),
        "puzzles, chat": (groups["puzzles"], True),
        "assistant, fresh": (groups["assistant"], False),
        "assistant, chat": (groups["assistant"], True),
        "sentences, fresh": (list(LONG), False),
        "sentences, chat": (list(LONG) * 2, True),
    }


def main() -> None:
    """Print a table of all kinds of prompts and policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--most", type=int, default=10, help="questions per family and number of hops")
    parser.add_argument("--thresholds", default="0.5,0.8,0.9", help="exit thresholds, in addition to full depth")
    parser.add_argument("--prices", default=",".join(map(str, PRICES)), help="of calls of 1, 2, 4 and 8 rows")
    options = parser.parse_args()
    costs = tuple(map(float, options.prices.split(",")))
    if len(costs) != len(ROWS):
        parser.error(f"--prices has {len(costs)} numbers; expected {len(ROWS)}")
    prices = tuple(cost / costs[0] for cost in costs)
    policies = [ouro_edge.FullDepth(), *(ouro_edge.ExitThreshold(float(q)) for q in options.thresholds.split(","))]
    print("| prompts | exit | mean depth | tokens | block calls | rows | head calls | drafts kept | price a token "
          "| ratio | over full depth | tokens/s |")  # fmt: skip
    print("| --- " * 12 + "|")
    with ouro_edge.load(options.model) as model:
        for name, (prompts, keep) in kinds(options.most).items():
            full: Outcome | None = None
            for policy in policies:
                runs = [answer(model, prompts, policy, on, keep, prices) for on in (False, True)]
                plain, drafts = runs
                rates = [answer(model, prompts, policy, on, keep, None) for on in (False, True)]
                if any(run.answers != plain.answers for run in (drafts, *rates)):
                    raise SystemExit(f"{name}, {policy}: speculation changed an answer")
                full = full or drafts
                depths = [depth for tokens in plain.answers for _, depth in tokens[1:]]
                told = "full" if policy is policies[0] else f"{policy.threshold}"  # type: ignore[attr-defined]
                pairs = [f"{a} -> {b}" for a, b in zip(plain.counts, drafts.counts, strict=True)]
                speeds = " -> ".join(f"{run.later / run.seconds:.0f}" for run in rates)
                print(f"| {name} | {told} | {np.mean(depths):.2f} | {plain.later} | {' | '.join(pairs)} "
                      f"| {drafts.accepted}/{drafts.drafted} | {plain.per_token:.2f} -> {drafts.per_token:.2f} "
                      f"| {plain.price / drafts.price:.2f} | {full.per_token / drafts.per_token:.2f} "
                      f"| {speeds} |")  # fmt: skip


if __name__ == "__main__":
    main()
