"""What company changes: `python benchmarks/company.py MODEL [--streams 8] [--mean-depth 2.5]`.

1. Tokens. Weights in int4 and int8 round activations, in calls of one row in another way than in calls of several, so a
   greedy token may differ from the one that the same prompt gets alone. Counts the first differences; what follows them
   is another text and does not count.
2. Time. Tokens per second of all streams at full depth and with a threshold of the exit gate, chosen so that the tokens
   have about the given mean depth. Streams at different loops share calls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

import ouro_edge

DATA = Path(__file__).parent / "nano" / "questions.test.jsonl"
THRESHOLDS = np.linspace(0.05, 0.95, 19)


def prompts(model: ouro_edge.Model, count: int) -> list[str] | list[list[int]]:
    """Questions as plain text; random ids for a model without a tokenizer."""
    if model.text.tokenizer is not None:
        lines = DATA.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prompt"] for line in lines[:: max(1, len(lines) // count)]][:count]
    return np.random.default_rng(0).integers(3, model.config.vocab_size, (count, 16)).tolist()


def ids_of(model: ouro_edge.Model, asked: Sequence[str | list[int]], tokens: int) -> list[list[int]]:
    """Greedy answers, computed at the same time if the model was loaded with `parallel`."""
    found: list[list[int]] = [[] for _ in asked]
    options = {"max_tokens": tokens, "sampler": ouro_edge.Sampler(), "stop_ids": (), "speculate": False}
    for number, event in model.generate_many(asked, **options):  # type: ignore[arg-type]
        if isinstance(event, ouro_edge.Token):
            found[number].append(event.id)
    return found


def differences(alone: list[list[int]], together: list[list[int]]) -> tuple[int, int]:
    """First differences, and the tokens up to them."""
    different = compared = 0
    for mine, its in zip(alone, together, strict=True):
        first = next((i for i, pair in enumerate(zip(mine, its, strict=True)) if pair[0] != pair[1]), None)
        different += first is not None
        compared += len(mine) if first is None else first + 1
    return different, compared


def rate(
    model: ouro_edge.Model, asked: Sequence[str | list[int]], tokens: int, exit: ouro_edge.ExitPolicy
) -> tuple[float, float]:
    """Tokens per second of all streams from beginning to end, prompts included, and the mean depth of the tokens.

    With a threshold, deeper loops of a prompt are computed when a token first needs them, and some streams begin to
    decode before others, so a shorter time would not compare the same work.
    """
    depths: list[int] = []
    options = {"max_tokens": tokens, "exit": exit, "stop_ids": (), "speculate": False, "sampler": ouro_edge.Sampler()}
    began = time.perf_counter()
    for _, event in model.generate_many(asked, **options):  # type: ignore[arg-type]
        if isinstance(event, ouro_edge.Token):
            depths.append(event.depth)
    return len(depths) / (time.perf_counter() - began), mean(depths)


def threshold_for(model: ouro_edge.Model, depth: float, asked: Sequence[str | list[int]]) -> float:
    """The threshold at which the tokens that follow some prompts have about this mean depth."""
    found = {float(q): rate(model, asked, 8, ouro_edge.ExitThreshold(float(q)))[1] for q in THRESHOLDS[::3]}
    return min(found, key=lambda q: abs(found[q] - depth))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--kv", default="fp32")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=32, help="for the comparison of tokens; 0: leave it out")
    parser.add_argument("--mean-depth", type=float, help="measure the time with a threshold of this mean depth")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with ouro_edge.load(options.model, kv=options.kv, parallel=options.streams) as together:
        if options.prompts:
            asked = prompts(together, options.prompts)
            with ouro_edge.load(options.model, kv=options.kv, prefill_weights="none") as alone:
                one = ids_of(alone, asked, options.tokens)
            different, compared = differences(one, ids_of(together, asked, options.tokens))
            print(f"{options.streams} streams: {different} first differences in {compared} tokens, "
                  f"{different / compared:.2%}; {different} of {len(asked)} answers differ")  # fmt: skip
        if options.mean_depth:
            asked = prompts(together, options.streams)
            q = threshold_for(together, options.mean_depth, asked)
            rules = (ouro_edge.FullDepth(), ouro_edge.ExitThreshold(q))
            rounds = [[rate(together, asked, options.tokens, rule) for rule in rules] for _ in range(options.repeat)]
            full, early = ([r[i][0] for r in rounds] for i in range(2))
            ratios = [b / a for a, b in zip(full, early, strict=True)]
            print(f"{options.streams} streams, full depth {median(full):.2f} tokens/s; threshold {q:.2f}, mean depth "
                  f"{rounds[0][1][1]:.2f}: {median(early):.2f} tokens/s, {median(ratios):.2f} times "
                  f"({min(ratios):.2f}-{max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
