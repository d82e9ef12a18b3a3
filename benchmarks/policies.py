"""What every exit policy costs and how well it answers, on Ouro-nano: `python benchmarks/policies.py --most 15`.

Exact match on held-out questions against the mean depth, the loops run and the calls of the head. One table, sorted by
cost in loops: a loop counts one, a call of the head `--head` loops.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import nano

import ouro_edge
from ouro_edge.testing import MeteredBackend

HEAD = 0.15  # Ouro-1.4B in int4: the head reads 0.1 GB, a loop 0.66 GB

# Spelled as the command line does. Each kind with a setting that costs (next to) no accuracy on the validation
# questions, and with cheaper ones.
POLICIES: dict[str, ouro_edge.ExitPolicy] = {
    **{f"--loops {r}": ouro_edge.FixedDepth(r) for r in (1, 2, 3, 4)},
    **{f"--exit-threshold {q}": ouro_edge.ExitThreshold(q) for q in (0.05, 0.1, 0.3, 0.5, 0.7)},
    **{f"--exit confidence:{p}": ouro_edge.ConfidenceThreshold(p) for p in (0.3, 0.5, 0.9)},
    **{f"--exit entropy:{nats}": ouro_edge.EntropyThreshold(nats) for nats in (2.0, 1.0, 0.2)},
    "--exit agreement": ouro_edge.Agreement(),
    "Agreement(floor=3)": ouro_edge.Agreement(floor=3),
    **{f"--exit change:{share}": ouro_edge.StateChange(share) for share in (0.3, 0.1, 0.08)},
    "--exit weighted": ouro_edge.ExpectedLogits(),
    **{
        f"--exit-threshold 0.5 --loop-budget {mean}": ouro_edge.LoopBudget(mean, ouro_edge.ExitThreshold(0.5))
        for mean in (2, 3, 4)
    },
}


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on all questions: means over questions of what a token of the answer took."""

    policy: str
    right: float
    depth: float  # block calls that end in this token: each reads the block's weights once
    loops: float  # positions through the block, with those before that were caught up
    prompt_loops: float  # of a position of the prompt, the last apart
    heads: float
    cost: float  # loops, and heads at their price


def measure(
    model: ouro_edge.Model, asked: Iterable[dict[str, object]], name: str, policy: ouro_edge.ExitPolicy, price: float
) -> Row:
    """Ask all questions under one policy."""
    answers, heads = [], []
    for question in asked:
        meter = MeteredBackend(model.backend)
        [answer] = nano.ask(ouro_edge.Model(meter, model.text), [question], policy)
        answers.append(answer)
        heads.append(sum(meter.head_rows) / answer.tokens)
    loops, calls = fmean(a.answer_loops / a.tokens for a in answers), fmean(heads)
    prompt = fmean((a.loops_run - a.answer_loops) / (a.prompt_tokens - 1) for a in answers)
    depth = fmean(a.depth for a in answers)
    return Row(name, nano.accuracy(answers), depth, loops, prompt, calls, loops + price * calls)


def table(rows: Iterable[Row]) -> str:
    """Markdown, the cheapest first."""
    head = ("policy", "exact match", "mean depth", "loops run", "head calls", "cost", "loops a prompt token")
    lines = [" | ".join(("", *head, "")).strip(), "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda row: row.cost):
        cells = [f"{x:.2f}" for x in (row.depth, row.loops, row.heads, row.cost, row.prompt_loops)]
        lines.append(f"| `{row.policy}` | {row.right:.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the policies on the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="an exported model that answers these questions; the built-in one")
    parser.add_argument("--most", type=int, help="at most this many questions a family and number of hops")
    parser.add_argument("--head", type=float, default=HEAD, help="loops that a call of the head costs (%(default)s)")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--only", help="only policies whose spelling contains this")
    options = parser.parse_args()
    chosen = {name: policy for name, policy in POLICIES.items() if (options.only or "") in name}
    asked = nano.questions(nano.DATA / f"questions.{options.split}.jsonl", options.most)
    with ouro_edge.load(options.model, kv="fp32") as model:
        rows = [measure(model, asked, name, policy, options.head) for name, policy in chosen.items()]
    print(f"{len(asked)} {options.split} questions; a call of the head at {options.head} loops.\n")
    print(table(rows))


if __name__ == "__main__":
    main()
