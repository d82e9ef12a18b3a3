"""Cost and accuracy of every exit policy on Ouro-nano: `python benchmarks/policies.py --most 15`.

One table: exact match on held-out questions, mean depth, loops run and head calls, sorted by cost in loops. A call of
the head costs `--head` loops.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import nano

import ouro_edge
from ouro_edge.testing import MeteredBackend

HEAD_CALL_LOOPS = 0.15  # Ouro-1.4B in int4: the head reads 0.1 GB, a loop 0.66 GB

# In the notation of the command line. Each kind with a setting that costs almost no accuracy on the validation
# questions, and with cheaper settings.
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
    """One policy on all questions: means over questions, per token of the answer."""

    policy: str
    right: float
    depth: float  # block calls per token: each reads the block's weights once
    loops: float  # positions that passed the block, including earlier ones that caught up
    prompt_loops: float  # per position of the prompt, except the last
    heads: float
    cost: float  # loops, plus head calls converted to loops


def measure(
    model: ouro_edge.Model, asked: Iterable[dict[str, object]], name: str, policy: ouro_edge.ExitPolicy, price: float
) -> Row:
    """Answer all questions with one policy."""
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
    """A Markdown table, sorted by cost."""
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
    cost = "loops that a call of the head costs (%(default)s)"
    parser.add_argument("--head", type=float, default=HEAD_CALL_LOOPS, help=cost)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--only", help="only policies that contain this text")
    options = parser.parse_args()
    chosen = {name: policy for name, policy in POLICIES.items() if (options.only or "") in name}
    asked = nano.questions(nano.DATA / f"questions.{options.split}.jsonl", options.most)
    with ouro_edge.load(options.model, kv="fp32") as model:
        rows = [measure(model, asked, name, policy, options.head) for name, policy in chosen.items()]
    print(f"{len(asked)} {options.split} questions; a call of the head at {options.head} loops.\n")
    print(table(rows))


if __name__ == "__main__":
    main()
