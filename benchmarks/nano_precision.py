"""What rounding costs Ouro-nano: `python benchmarks/nano_precision.py FLOAT MODEL... [--fresh 200]`.

FLOAT and MODELs are exported directories. For every depth: exact match of both, the difference with its standard error
(the questions are the same), and KL in nats from FLOAT over the tokens of the answers. The questions are the test file
of benchmarks/nano, or with --fresh N new ones of the test split, N for every family and number of hops, without those
of the file. Run it in a clone: the generator is in training/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

import ouro_edge
from ouro_edge.evaluation.distances import kl_divergence, log_softmax
from ouro_edge.evaluation.questions import Question, read_questions

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "benchmarks" / "nano" / f"questions.{split}.jsonl" for split in ("test", "validation")]
Outcome = tuple[NDArray[np.bool_], list[NDArray[np.float64]]]  # right [Q, R]; log-probabilities [R, T, V] of answers


def fresh_questions(per_skill: int) -> list[Question]:
    """New questions of the test split."""
    sys.path.insert(0, str(ROOT))
    from training.calibration import LEARNED, question
    from training.families import MAX_HOPS

    seen = {known.prompt for file in FILES for known in read_questions(file)}
    rng, found = Random("fresh"), list[Question]()
    for family in LEARNED:
        for hops in range(1, MAX_HOPS[family] + 1):
            kept = 0
            for _ in range(20 * per_skill):  # some skills have few questions
                new = question(rng, family, hops, "test")
                if kept < per_skill and new.prompt not in seen:
                    seen.add(new.prompt)
                    found.append(Question(new.prompt, new.answer))
                    kept += 1
    return found


def outcome(model: ouro_edge.Model, questions: Sequence[Question]) -> Outcome:
    """Whether the greedy answers are right at every depth, and the probabilities of their tokens."""
    right, probabilities = [], []
    for asked in questions:
        prompt = model.tokenizer.encode(model.render([{"role": "user", "content": asked.prompt}]))
        answer = model.tokenizer.encode(asked.answer)
        hidden = model.states(prompt + answer, prefix=model.prefix_of(prompt)).hidden[:, len(prompt) - 1 :]
        rows = np.asarray(model.logits(hidden.reshape(-1, hidden.shape[-1])))
        logits = rows.reshape(*hidden.shape[:2], -1)
        best = logits.argmax(axis=2).tolist()
        right.append([tokens[:-1] == answer and tokens[-1] in model.stop_ids for tokens in best])
        probabilities.append(log_softmax(logits))
    return np.array(right), probabilities


def table(exact: Outcome, found: Outcome) -> str:
    """Markdown, a line for every depth."""
    lines = ["| loops | exact match float32 | rounded | difference | KL |", "| --- " * 5 + "|"]
    difference = 100 * (found[0].astype(float) - exact[0])
    for depth, gap in enumerate(difference.T):
        kl = np.mean([kl_divergence(p[depth], q[depth]).mean() for p, q in zip(exact[1], found[1], strict=True)])
        lines.append(f"| {depth + 1} | {exact[0][:, depth].mean():.1%} | {found[0][:, depth].mean():.1%} "
                     f"| {gap.mean():+.2f} ± {gap.std() / len(gap) ** 0.5:.2f} | {kl:.4f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exact", metavar="FLOAT", type=Path)
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+")
    parser.add_argument("--fresh", type=int, metavar="N", help="N new questions of each skill instead of the file's")
    parser.add_argument("--most", type=int, metavar="N", help="at most N questions")
    options = parser.parse_args()
    questions = read_questions(FILES[0]) if options.fresh is None else fresh_questions(options.fresh)
    questions = questions[: options.most]
    outcomes = []
    for path in (options.exact, *options.models):
        with ouro_edge.load(path, kv="fp32", prefill_weights="none", threads=1) as model:
            outcomes.append(outcome(model, questions))
    for path, found in zip(options.models, outcomes[1:], strict=True):
        print(f"\n{path.name}: {len(questions)} questions\n\n{table(outcomes[0], found)}", flush=True)


if __name__ == "__main__":
    main()
