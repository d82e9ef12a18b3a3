"""Accuracy of Ouro-nano by depth and exit threshold: `python benchmarks/nano.py MODEL... --png curve.png`.

MODEL is an exported model (several to compare precisions). Questions are the held-out ones in benchmarks/nano: exact
match of the whole greedy answer by family, hops and fixed depth; then by exit threshold. Thresholds are chosen on the
validation questions and reported on the test questions.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ouro_edge

DATA = Path(__file__).parent / "nano"
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
MAX_ACCURACY_LOSS = 0.02  # accuracy that the chosen threshold may cost on the validation questions


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one question."""

    family: str
    hops: int
    text: str
    right: bool
    depth: float  # mean over the tokens of the answer
    tokens: int  # including the end token
    prompt_tokens: int
    loops_run: int
    loops_full: int
    answer_loops: int  # loops_run of the positions that produced the answer's tokens


def questions(file: Path, most: int | None) -> list[dict[str, Any]]:
    """Questions of a file, at most `most` of each family and number of hops."""
    kept, counts = [], defaultdict(int)
    for line in file.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        skill = question["family"], question["hops"]
        counts[skill] += 1
        if most is None or counts[skill] <= most:
            kept.append(question)
    return kept


def ask(
    model: ouro_edge.Model,
    asked: Iterable[dict[str, Any]],
    policy: ouro_edge.ExitPolicy,
    sequence: ouro_edge.TokenSequence | None = None,
) -> list[Answer]:
    """Greedy answers to all questions with one exit policy, each in a new sequence unless one is given."""
    answers = []
    for question in asked:
        messages = [{"role": "user", "content": question["prompt"]}]
        own = model.new_sequence() if sequence is None else sequence
        *tokens, done = model.chat(messages, exit=policy, max_tokens=48, sampler=ouro_edge.Sampler(), sequence=own)
        before = done.usage.prompt_tokens - 1  # the last position of the prompt produces the first token
        answers.append(
            Answer(
                question["family"],
                question["hops"],
                done.text,
                done.text == question["answer"],
                fmean(token.depth for token in tokens),
                len(tokens),
                done.usage.prompt_tokens,
                done.usage.loops_run,
                done.usage.loops_full,
                sum(max(0, at - before) for at in own.frontier[1:]),
            )
        )
    return answers


def accuracy(answers: Iterable[Answer]) -> float:
    """Share of right answers."""
    return fmean(answer.right for answer in answers)


def depth_table(runs: list[list[Answer]]) -> str:
    """A Markdown table: exact match by family, hops and fixed depth."""
    loops = range(len(runs))
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, answer in enumerate(runs[0]):
        for key in (
            (answer.family, str(answer.hops)),
            (answer.family, "all"),
            ("all", str(answer.hops)),
            ("all", "all"),
        ):
            groups[key].append(i)
    head = "| family | hops | questions | " + " | ".join(f"{r + 1} loop{'s' * (r > 0)}" for r in loops) + " |"
    lines = [head, "| --- " * (3 + len(runs)) + "|"]
    for (family, hops), rows in sorted(groups.items(), key=lambda item: (item[0][0] == "all", item[0])):
        cells = [f"{accuracy(runs[r][i] for i in rows):.1%}" for r in loops]
        lines.append(f"| {family} | {hops} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fixed_at(depth: float, fixed: list[float]) -> float:
    """Accuracy of a mixture of two adjacent fixed depths with mean `depth`."""
    low = min(int(depth), len(fixed) - 1)
    share = depth - low
    return fixed[low - 1] * (1 - share) + fixed[low] * share


def evaluate(path: str, most: int | None) -> dict[str, Any]:
    """Evaluate one model; prints Markdown and returns the figures."""
    with ouro_edge.load(path, kv="fp32") as model:
        validation, test = (questions(DATA / f"questions.{split}.jsonl", most) for split in ("validation", "test"))
        runs = [ask(model, test, ouro_edge.FixedDepth(r + 1)) for r in range(model.config.loops)]
        fixed = [accuracy(run) for run in runs]
        print(f"\n## {model.name}: {len(test)} test questions\n")
        print(depth_table(runs))
        sweep = []
        full = accuracy(ask(model, validation, ouro_edge.FullDepth()))
        print("\n| threshold | validation | test | mean depth | fixed depth of that mean | by hops | loops saved |")
        print("| --- " * 7 + "|")
        for threshold in THRESHOLDS:
            policy = ouro_edge.ExitThreshold(threshold)
            on_validation, on_test = ask(model, validation, policy), ask(model, test, policy)
            depth = fmean(a.depth for a in on_test)
            hops = sorted({a.hops for a in on_test})
            by_hops = [fmean(a.depth for a in on_test if a.hops == h) for h in hops]
            saved = 1 - sum(a.loops_run for a in on_test) / sum(a.loops_full for a in on_test)
            row: dict[str, Any] = {
                "threshold": threshold,
                "validation": accuracy(on_validation),
                "validation_depth": fmean(a.depth for a in on_validation),
                "test": accuracy(on_test),
                "depth": depth,
                "fixed": fixed_at(depth, fixed),
                "by_hops": by_hops,
                "loops_saved": saved,
            }
            sweep.append(row)
            cells = "/".join(f"{d:.2f}" for d in by_hops)
            print(f"| {threshold} | {row['validation']:.1%} | {row['test']:.1%} | {depth:.2f} | {row['fixed']:.1%} "
                  f"| {cells} | {saved:.0%} |")  # fmt: skip
        good = [row for row in sweep if row["validation"] >= full - MAX_ACCURACY_LOSS]
        chosen = min(good, key=lambda row: row["validation_depth"])
        print(f"\nChosen on validation: threshold {chosen['threshold']}, on test {chosen['test']:.1%} at mean depth "
              f"{chosen['depth']:.2f}; full depth {fixed[-1]:.1%}.")  # fmt: skip
    return {"model": path, "fixed": fixed, "sweep": sweep, "chosen": chosen["threshold"]}


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Plot accuracy against mean depth: thresholds as a line, fixed depths as points."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("drawing needs matplotlib: pip install matplotlib, or leave --png out") from None
    figure, axes = plt.subplots(figsize=(6, 4), dpi=150)
    for result in results:
        sweep = result["sweep"]
        name = Path(result["model"]).name
        [line] = axes.plot([r["depth"] for r in sweep], [r["test"] for r in sweep], "o-", label=f"{name}, exit gate")
        axes.plot(range(1, len(result["fixed"]) + 1), result["fixed"], "x--", color=line.get_color(), alpha=0.5,
                  label=f"{name}, fixed depth")  # fmt: skip
    axes.set(xlabel="mean loops per token", ylabel="exact match on test questions", ylim=(0, 1.02))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    """Evaluate the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--most", type=int, help="maximum number of questions per family and number of hops")
    parser.add_argument("--png", type=Path, help="draw accuracy against mean depth")
    parser.add_argument("--json", type=Path, help="write all figures")
    options = parser.parse_args()
    results = [evaluate(model, options.most) for model in options.models]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png:
        draw(results, options.png)


if __name__ == "__main__":
    main()
