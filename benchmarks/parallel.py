"""Decoding speed of several generations at once: `python benchmarks/parallel.py MODEL --streams 1,2,4,8`.

Every number of streams is timed on the same loaded model, at a context of 128 positions and full depth by default, in
rounds. Printed are medians of the total tokens per second, their ratio to one stream of a model loaded without
`parallel`, and the time in which all streams advance by one loop.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import ouro_edge
from ouro_edge.measure.context import filled_sequence
from ouro_edge.runtime.sequence.sequence import TokenSequence


def rate(model: ouro_edge.Model, streams: int, depth: int, context: int, tokens: int) -> float:
    """Tokens per second of all streams together, after the first token of each."""
    rng = np.random.default_rng(0)
    sequences = [filled_sequence(model, context, depth, tokens + 8, rng) for _ in range(streams)]
    ready = threading.Barrier(streams)

    def decode(sequence: TokenSequence) -> tuple[float, float]:
        sequence.append([5])
        events = model.generate(
            list(sequence.tokens),
            max_tokens=tokens + 1,
            exit=ouro_edge.FixedDepth(depth),
            sampler=ouro_edge.Sampler(),
            stop_ids=(),
            sequence=sequence,
            speculate=False,
        )
        next(events)
        ready.wait()
        began = time.perf_counter()
        for _ in events:
            pass
        return began, time.perf_counter()

    with ThreadPoolExecutor(streams) as pool:
        times = list(pool.map(decode, sequences))
    return streams * tokens / (max(end for _, end in times) - min(begin for begin, _ in times))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--streams", default="1,2,4,8", help="numbers of generations at once")
    parser.add_argument("--kv", default="fp32")
    parser.add_argument("--depth", type=int, default=None, help="loops per token (default: all)")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--prefill-weights", default="auto", choices=("auto", "int8", "none"))
    options = parser.parse_args()
    streams = [int(count) for count in options.streams.split(",")]
    settings = {"kv": options.kv, "threads": options.threads, "prefill_weights": options.prefill_weights}
    alone = ouro_edge.load(options.model, **settings)
    together = ouro_edge.load(options.model, parallel=max(streams), **settings)
    depth = options.depth or alone.config.loops
    rates: dict[int, list[float]] = {count: [] for count in (0, *streams)}  # 0: one stream without `parallel`
    for _ in range(options.rounds):
        rates[0].append(rate(alone, 1, depth, options.context, options.tokens))
        for count in streams:
            rates[count].append(rate(together, count, depth, options.context, options.tokens))
    print("| streams | tokens/s | to one stream alone | ms per loop of all |")
    print("| --- | --- | --- | --- |")
    base = median(rates[0])
    print(f"| 1, loaded without parallel | {base:.2f} | 1.00 | {1e3 / base / depth:.1f} |")
    for count in streams:
        speed = median(rates[count])
        print(f"| {count} | {speed:.2f} | {speed / base:.2f} | {1e3 * count / speed / depth:.1f} |")


if __name__ == "__main__":
    main()
