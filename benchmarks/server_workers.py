"""One server process with all threads against several with a share each: requests and tokens per second.

    python benchmarks/server_workers.py MODEL --workers 1,2 --clients 1,4,8 --seconds 10 --tokens 16

Each client has a connection of its own and sends one request after the other; all prompts differ. Needs `pip install
'.[serve]' httpx`. The clients run on the same machine and take part of its time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

NAMES = "Ada Ben Cleo Dan Eva Finn Olga Rosa Sam Tess Will Yuri".split()


@contextmanager
def serving(model: str, workers: int, threads: int, parallel: int) -> Iterator[str]:
    """The address of a running server."""
    command = [sys.executable, "-m", "ouro_edge", "serve", model, "--port", "0", "--workers", str(workers),
               "--threads", str(threads), "--parallel", str(parallel)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next((m for line in process.stderr if (m := re.search(r" at (http://\S+)$", line.strip()))), None)
        if found is None:
            raise SystemExit(f"the server ended with status {process.wait()}")
        try:
            yield found[1]
        finally:
            process.terminate()


async def load(url: str, clients: int, seconds: float, tokens: int) -> tuple[float, float, list[float]]:
    """Requests per second, tokens per second, and the durations of all requests."""
    numbers, end = itertools.count(), time.monotonic() + seconds
    durations, generated = [], 0

    async def client() -> None:
        nonlocal generated
        async with httpx.AsyncClient(trust_env=False, timeout=300) as http:
            while time.monotonic() < end:
                n = next(numbers)
                people = [NAMES[(n * step + step) % len(NAMES)] for step in (1, 5, 7)]
                prompt = f"{n} {people[0]} likes {people[1]}. {people[1]} likes {people[2]}."
                body = {"prompt": prompt, "temperature": 0,
                        "max_tokens": tokens, "logit_bias": {"0": -100, "1": -100, "2": -100}}  # fmt: skip
                begin = time.monotonic()
                answer = (await http.post(url + "/v1/completions", json=body)).raise_for_status().json()
                durations.append(time.monotonic() - begin)
                generated += answer["usage"]["completion_tokens"]

    begin = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.monotonic() - begin
    return len(durations) / took, generated / took, durations


def main() -> None:
    """Print a row for each number of workers and clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--threads", type=int, default=2, help="of all workers together")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    print("| workers x threads | clients | requests/s | tokens/s | median s | 95% s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for workers in map(int, options.workers.split(",")):
        with serving(options.model, workers, options.threads, options.parallel) as url:
            asyncio.run(load(url, 2 * workers, 1, options.tokens))
            for clients in map(int, options.clients.split(",")):
                requests, tokens, durations = asyncio.run(load(url, clients, options.seconds, options.tokens))
                slow = statistics.quantiles(durations, n=20)[-1] if len(durations) > 1 else durations[0]
                print(f"| {workers} x {options.threads // workers} | {clients} | {requests:.1f} | {tokens:.1f} "
                      f"| {statistics.median(durations):.3f} | {slow:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
