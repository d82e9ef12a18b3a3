"""Concurrent streaming clients of a server: `python benchmarks/server_clients.py MODEL --kv int8`.

Starts `ouro-edge serve` and measures with the openai package: tokens per second of one client and of several together,
the gaps between the tokens of a stream, the time to the first token of a short prompt while the other clients decode,
and the gaps of those while a long prompt is read. Prompts are random ids, so that none has a prefix in common with
another; all loops of every token are computed. The model needs a tokenizer:

    ouro-edge export SmolLM2.gguf SMOLLM2
    python benchmarks/random_checkpoint.py CHECKPOINT --shape 1.4b --tokenizer SMOLLM2
    ouro-edge export CHECKPOINT MODEL
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import openai

NO_END = {"0": -100, "1": -100, "2": -100}  # ids that end answers
FIRST_ID, LAST_ID = 300, 760  # text in the tokenizers of all models


@dataclass(slots=True)
class Stream:
    """When a client sent its request, and when the pieces of its answer arrived."""

    began: float = 0.0
    arrived: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrived[0] - self.began

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Seconds between pieces that arrived in a time window."""
        return [b - a for a, b in pairwise(self.arrived) if since <= b <= until]


class Client:
    """Requests to one server."""

    def __init__(self, url: str, loops: int | None) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
        self._more = {} if loops is None else {"loops": loops}
        self._rng = random.Random(0)
        self._stop = threading.Event()

    def prompt(self, length: int) -> list[int]:
        """Random ids."""
        return [self._rng.randint(FIRST_ID, LAST_ID) for _ in range(length)]

    def stream(self, prompt: list[int], tokens: int, into: Stream | None = None) -> Stream:
        """Read a complete answer, or as much as comes before `ended`."""
        found = Stream() if into is None else into
        found.began = time.perf_counter()
        answer = self._client.completions.create(
            model="default", prompt=prompt, max_tokens=tokens, stream=True, temperature=0, logit_bias=NO_END,
            stream_options={"include_usage": True}, extra_body=self._more,
        )  # fmt: skip
        for chunk in answer:
            if chunk.choices and chunk.choices[0].text:
                found.arrived.append(time.perf_counter())
            if chunk.usage is not None:
                found.tokens = chunk.usage.completion_tokens
            if self._stop.is_set():
                answer.close()
                break
        return found

    @contextmanager
    def decoding(self, count: int, prompt: int) -> Iterator[list[Stream]]:
        """So many clients that decode until the block ends; entered when all have their first tokens."""
        streams = [Stream() for _ in range(count)]
        prompts = [self.prompt(prompt) for _ in streams]
        threads = [
            threading.Thread(target=self.stream, args=(p, 4096, s)) for p, s in zip(prompts, streams, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(len(s.arrived) < 3 for s in streams) and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            yield streams
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._stop.clear()


@contextmanager
def server(model: str, clients: int, kv: str) -> Iterator[str]:
    """A server in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "ouro_edge", "serve", model, "--port", "0", "--kv", kv, "--parallel", str(clients)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr or ())
            found = next((at[1] for line in lines if (at := re.search(r" at (http://\S+)$", line.strip()))), None)
            if found is None:
                raise SystemExit("error: the server did not start: run ouro-edge serve with the same model")
            threading.Thread(target=list, args=(lines,), daemon=True).start()  # so that its pipe never fills
            yield found
        finally:
            process.terminate()


def together(client: Client, count: int, prompt: int, tokens: int) -> tuple[float, list[Stream]]:
    """Tokens per second of all streams after the first token of each, and the streams."""
    prompts = [client.prompt(prompt) for _ in range(count)]
    streams = [Stream() for _ in range(count)]
    threads = [
        threading.Thread(target=client.stream, args=(p, tokens, s)) for p, s in zip(prompts, streams, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = max(s.arrived[-1] for s in streams) - min(s.arrived[0] for s in streams)
    return sum(s.tokens - 1 for s in streams) / seconds, streams


def spread(values: list[float]) -> str:
    """Median, 95th percentile and maximum in milliseconds."""
    middle, high, most = 1e3 * np.percentile(values, (50, 95, 100))
    return f"median {middle:.0f}, p95 {high:.0f}, longest {most:.0f} ms"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--loops", type=int, help="loops of every token (default: the model's exit rule)")
    parser.add_argument("--prompt", type=int, default=32, help="ids of a short prompt")
    parser.add_argument("--long", type=int, default=2000, help="ids of the long prompt; 0: none")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    with server(options.model, options.clients, options.kv) as url:
        client = Client(url, options.loops)
        client.stream(client.prompt(options.prompt), 4)  # warm up
        one, streams = together(client, 1, options.prompt, options.tokens)
        print(f"1 client: {one:.2f} tokens/s; gaps {spread(streams[0].gaps())}; first token {streams[0].first:.2f} s")
        several, streams = together(client, options.clients, options.prompt, options.tokens)
        gaps = [gap for s in streams for gap in s.gaps()]
        print(f"{options.clients} clients: {several:.2f} tokens/s, {several / one:.2f} times one; gaps {spread(gaps)}")
        with client.decoding(options.clients - 1, options.prompt) as others:
            firsts = [client.stream(client.prompt(options.prompt), 2).first for _ in range(5)]
            print(f"first token of {options.prompt} ids while {len(others)} decode: {spread(firsts)}")
            if options.long:
                began = time.perf_counter()
                first = client.stream(client.prompt(options.long), 1).first
                gaps = [gap for s in others for gap in s.gaps(began, began + first)]
                print(f"first token of {options.long} ids while {len(others)} decode: {first:.1f} s; "
                      f"their gaps meanwhile {spread(gaps)}")  # fmt: skip


if __name__ == "__main__":
    main()
