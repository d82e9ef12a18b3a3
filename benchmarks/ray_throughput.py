"""Ray Data with two actors of one thread against one process with two threads, on the same rows.

    python benchmarks/ray_throughput.py MODEL --rows 64 --tokens 16 --parallel 4

Prints tokens per second of both, without loading; the start of Ray and of its actors is reported beside them. Needs
`pip install '.[ray]'`.
"""

from __future__ import annotations

import argparse
import time

import ray
from ray.data import ActorPoolStrategy

import ouro_edge
from ouro_edge.integrations.ray import Generator


def prompts(rows: int) -> list[str]:
    """Texts that differ from their first token on."""
    return [f"{i} Ada likes Ben. Ben likes Cleo. Cleo likes" for i in range(rows)]


class Timed(Generator):
    """Adds when a batch began and ended."""

    def __call__(self, batch):  # type: ignore[no-untyped-def]
        begin = time.time()
        done = super().__call__(batch)
        for name, value in (("begin", begin), ("end", time.time())):
            done = done.append_column(name, [[value] * len(done)])
        return done


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    texts, bias = prompts(options.rows), {0: -100.0, 1: -100.0, 2: -100.0}

    with ouro_edge.load(options.model, threads=2, parallel=2 * options.parallel) as model:
        sampler = model.default_sampler(temperature=0, logit_bias=bias)
        begin = time.time()
        events = list(model.generate_many(texts, max_tokens=options.tokens, sampler=sampler))
        took = time.time() - begin
        count = sum(event.usage.completion_tokens for _, event in events if isinstance(event, ouro_edge.Done))
    print(f"1 process x 2 threads: {count / took:.1f} tokens/s ({count} tokens in {took:.1f} s)", flush=True)

    start = time.time()
    ray.init(num_cpus=3, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"prompt": text} for text in texts]).repartition(max(2, options.rows // options.batch))
    arguments = {"model": options.model, "parallel": options.parallel, "max_tokens": options.tokens,
                 "temperature": 0, "logit_bias": bias}  # fmt: skip
    done = rows.map_batches(
        Timed, fn_constructor_kwargs=arguments, batch_format="pyarrow", batch_size=options.batch,
        compute=ActorPoolStrategy(size=2), num_cpus=1,
    ).take_all()  # fmt: skip
    count = sum(row["usage"]["completion_tokens"] for row in done)
    took = max(row["end"] for row in done) - min(row["begin"] for row in done)
    print(f"2 Ray actors x 1 thread: {count / took:.1f} tokens/s ({count} tokens in {took:.1f} s; "
          f"{time.time() - start:.1f} s with the start of Ray and the actors)")  # fmt: skip


if __name__ == "__main__":
    main()
