"""Soak test of a server with Ouro-nano: answers, streams, disconnecting clients, invalid requests.

    python benchmarks/soak.py --minutes 30

Prints counts of requests, every wrong answer, memory over time, and idle CPU at the end.
Needs `pip install '.[serve]' httpx`.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import httpx
import psutil

NAMES = "Ada Ben Cleo Dan Eva Finn Olga Rosa Sam Tess Will Yuri".split()
CHAT, COMPLETE, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ENDLESS = {"logit_bias": {"0": -100, "1": -100, "2": -100}}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": NAMES}},
    "required": ["name"],
    "additionalProperties": False,
}

Answer = tuple[int, set[int]]  # status, and the correct ones


def question(rng: random.Random) -> list[dict[str, str]]:
    """The messages of a puzzle."""
    people = rng.sample(NAMES, 4)
    facts = " ".join(f"{a} likes {b}." for a, b in pairwise(people))
    return [{"role": "user", "content": f"{facts} {people[0]} likes someone who likes who?"}]


def chat(client: httpx.Client, rng: random.Random) -> Answer:
    """A short answer, with varying options."""
    more = rng.choice(
        [{}, {"loops": rng.randint(1, 4)}, {"logprobs": True, "top_logprobs": 5}, {"n": 3, "temperature": 1, "lens": 2}]
    )
    return client.post(CHAT, json={"messages": question(rng), "max_tokens": 32, **more}).status_code, {200, 429}


def stream(client: httpx.Client, rng: random.Random) -> Answer:
    """A complete stream."""
    body = {"messages": question(rng), "stream": True, "max_tokens": 64, "lens": 2}
    with client.stream("POST", CHAT, json=body) as response:
        whole = "".join(response.iter_text())
    return response.status_code if response.status_code != 200 or "[DONE]" in whole else 0, {200, 429}


def leave(client: httpx.Client, rng: random.Random) -> Answer:
    """A stream of a long answer; the client disconnects after some lines."""
    lines = rng.randint(0, 40)
    with client.stream("POST", CHAT, json={"messages": question(rng), "stream": True, **ENDLESS}) as response:
        for i, _ in enumerate(response.iter_lines()):
            if i >= lines:
                break
    return response.status_code, {200, 429}


def give_up(client: httpx.Client, rng: random.Random) -> Answer:
    """A long answer; the client disconnects before it."""
    try:
        response = client.post(CHAT, json={"messages": question(rng), **ENDLESS}, timeout=rng.uniform(0.01, 0.3))
    except httpx.TimeoutException:
        return 499, {499}
    return response.status_code, {200, 429}


def complete(client: httpx.Client, rng: random.Random) -> Answer:
    """Scores of a prompt, as requested by evaluation programs."""
    body = {"prompt": question(rng)[0]["content"], "echo": True, "logprobs": 1, "max_tokens": 1}
    return client.post(COMPLETE, json=body).status_code, {200, 429}


def embed(client: httpx.Client, rng: random.Random) -> Answer:
    """Embeddings of two texts."""
    texts = [question(rng)[0]["content"] for _ in range(2)]
    return client.post(EMBED, json={"input": texts}).status_code, {200, 429}


def schema(client: httpx.Client, rng: random.Random) -> Answer:
    """An answer under a JSON schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return client.post(CHAT, json={"messages": question(rng), "response_format": form}).status_code, {200, 429}


def nonsense(client: httpx.Client, rng: random.Random) -> Answer:
    """An invalid body."""
    body = rng.choice(
        [b"", b"{", b"[]", rng.randbytes(100), b"[" * 10_000, b'{"messages": 5}', b'{"prompt": ""}', b'{"input": [[]]}',
         b'{"messages": [{"role": "user", "content": "' + b"word " * 2000 + b'"}]}',
         b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "xml"}}']
    )  # fmt: skip
    path = rng.choice([CHAT, COMPLETE, EMBED])
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    return response.status_code, {400}


KINDS: dict[Callable[[httpx.Client, random.Random], Answer], int] = {
    chat: 4, stream: 3, leave: 2, give_up: 2, complete: 2, embed: 1, schema: 1, nonsense: 3,
}  # fmt: skip


def work(url: str, seed: int, end: float, seen: Counter[tuple[str, int]], wrong: list[str]) -> None:
    """One client, until the end of the test."""
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while time.monotonic() < end:
            [kind] = rng.choices(list(KINDS), list(KINDS.values()))
            try:
                status, right = kind(client, rng)
            except httpx.HTTPError as problem:
                wrong.append(f"{kind.__name__}: {problem!r}")
                continue
            seen[kind.__name__, status] += 1
            if status not in right:
                wrong.append(f"{kind.__name__}: {status}")


def main() -> int:
    """Run the test. Returns 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "ouro_edge", "serve", "--port", "0", "--queue", "3", "--cache", "16"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r" at (http://\S+)$", line.strip())))
        noise: list[str] = []
        reader = threading.Thread(target=lambda: noise.extend(server.stderr or ()))
        reader.start()
        process = psutil.Process(server.pid)
        seen: Counter[tuple[str, int]] = Counter()
        wrong: list[str] = []
        begin = time.monotonic()
        end = begin + arguments.minutes * 60
        clients = [threading.Thread(target=work, args=(url, i, end, seen, wrong)) for i in range(arguments.clients)]
        for client in clients:
            client.start()
        steps = 10
        for step in range(1, steps + 1):
            time.sleep(max(0.0, begin + step * (end - begin) / steps - time.monotonic()))
            memory, threads, files = process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()
            print(f"{step / steps:4.0%}  {memory:6.1f} MiB, {threads} threads, {files} files, {seen.total()} answers")
        for client in clients:
            client.join()
        time.sleep(2)
        before = process.cpu_times()
        time.sleep(10)
        after = process.cpu_times()
        idle = (after.user + after.system - before.user - before.system) / 10
        health = httpx.get(f"{url}/health", trust_env=False).json()
        server.terminate()
        server.wait(30)
        reader.join()
    for (kind, status), count in sorted(seen.items()):
        print(f"{kind:>10} {status} {count}")
    print(f"idle CPU after: {idle:.1%} of a core; {health}; exit {server.returncode}; {len(noise)} lines on stderr")
    print(f"{len(wrong)} wrong", *sorted(Counter(wrong).items()), *noise[:20], sep="\n")
    return int(bool(wrong or noise or server.returncode or health["running"]))


if __name__ == "__main__":
    sys.exit(main())
