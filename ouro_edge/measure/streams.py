"""Times the decoding of several generations at once: tokens per second of all together.

Every number of streams is timed on one model loaded with `parallel`, and one stream on a model loaded without it, in
rounds, so that a temporary slowdown of the machine affects all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ouro_edge.loading import load, open_model_files
from ouro_edge.measure.context import filled_sequence
from ouro_edge.measure.speed import Plan, check_plan
from ouro_edge.runtime.exits.policies import FixedDepth
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.options import KVType, PrefillWeights
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class StreamSpeed:
    """The result for one number of streams; 0 streams is one stream on a model loaded without `parallel`."""

    streams: int
    tokens: int  # of each stream, after its first
    depth: int
    context: int
    rates: tuple[float, ...]  # tokens per second of all streams, one per repeat


def time_streams(
    path: Path, kv: KVType, threads: int, streams: tuple[int, ...], plan: Plan, prefill: PrefillWeights = "auto"
) -> Iterator[str | StreamSpeed]:
    """Yields status lines as text, and results. To be run in a process of its own; errors as for `load`."""
    yield f"loading, kv {kv}, for {max(streams)} streams"
    depths, _ = check_plan(open_model_files(path), plan)
    with (
        load(path, kv=kv, threads=threads, prefill_weights="none") as alone,
        load(
            path, kv=cast(KVType, alone.kv), threads=threads, prefill_weights=prefill, parallel=max(streams)
        ) as together,
    ):
        tests = [(count, n, depth, at) for at in plan.contexts for n in plan.tokens for depth in depths
                 for count in (0, *streams)]  # fmt: skip
        rates: dict[tuple[int, int, int, int], list[float]] = {test: [] for test in tests}
        for repeat in range(plan.repeats):
            for test in tests:
                count, tokens, depth, context = test
                yield f"{count or 1} streams, depth {depth} ({repeat + 1} of {plan.repeats})"
                rates[test].append(_rate(together if count else alone, count or 1, tokens, depth, context))
        yield from (StreamSpeed(*test, rates=tuple(found)) for test, found in rates.items())


def _rate(model: Model, streams: int, tokens: int, depth: int, context: int) -> float:
    """Tokens per second of all streams together, after the first token of each."""
    rng = np.random.default_rng(0)
    sequences = [filled_sequence(model, context, depth, tokens + 2, rng) for _ in range(streams)]
    ready = threading.Barrier(streams)

    def decode(sequence: TokenSequence) -> tuple[float, float]:
        sequence.append([0])
        events = model.generate(
            list(sequence.tokens),
            max_tokens=tokens + 1,
            exit=FixedDepth(depth, force=True),
            sampler=Sampler(),
            stop_ids=(),
            sequence=sequence,
            speculate=False,
        )
        try:
            next(events)
            ready.wait()
            began = time.perf_counter()
            for _ in events:
                pass
        except BaseException:
            ready.abort()  # the other streams must not wait for this one
            raise
        return began, time.perf_counter()

    with ThreadPoolExecutor(streams) as pool:
        times = list(pool.map(decode, sequences))
    return streams * tokens / (max(end for _, end in times) - min(begin for begin, _ in times))
