"""Soak test of a server with Ouro-nano: answers, streams, disconnecting clients, invalid requests.

    python benchmarks/soak.py --minutes 30 --clients 16

Greedy answers and streams are compared with those of the same model alone in this process. Nano's weights are int8, so
a token can differ by rounding in company, rarely; with float32 weights none may:

    python benchmarks/random_checkpoint.py CHECKPOINT --shape tiny --tokenizer ouro_edge/nano
    ouro-edge export CHECKPOINT MODEL --precision fp32
    python benchmarks/soak.py --model MODEL

Prints counts of requests, every wrong answer, memory over time, and idle CPU at the end. `--server URL --pid PID` uses
a server that runs already, so that several runs can make one long test.
Needs `pip install '.[serve]' httpx`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import httpx
import psutil

import ouro_edge

NAMES = "Ada Ben Cleo Dan Eva Finn Olga Rosa Sam Tess Will Yuri".split()
CHAT, COMPLETE, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
QUESTIONS = 400  # different ones, whose answers alone are computed once
ENDLESS = {"logit_bias": {"0": -100, "1": -100, "2": -100}}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": NAMES}},
    "required": ["name"],
    "additionalProperties": False,
}

Answer = tuple[int | str, set[int]]  # status, and the correct ones; a text that differs from the model's alone
GREEDY = {"temperature": 0}
LENGTHS = (32, 64)  # tokens of an answer and of a stream, at most


class Expected:
    """Greedy answers of the model alone, computed once each in this process."""

    def __init__(self, model: str | None) -> None:
        self._model = ouro_edge.load(model, kv="fp32")
        self._known: dict[tuple[str, int, int | None], str] = {}
        self._lock = threading.Lock()

    def answer(self, messages: list[dict[str, str]], tokens: int, loops: int | None) -> str:
        """The text of an answer of at most so many tokens."""
        key = messages[0]["content"], tokens, loops
        with self._lock:
            if key not in self._known:
                rule = None if loops is None else ouro_edge.FixedDepth(loops)
                *_, done = self._model.chat(messages, max_tokens=tokens, sampler=ouro_edge.Sampler(), exit=rule)
                self._known[key] = done.text
            return self._known[key]

    def compare(self, found: str, messages: list[dict[str, str]], tokens: int, loops: int | None) -> int | str:
        """200 for the right text; otherwise both texts."""
        right = self.answer(messages, tokens, loops)
        if found == right:
            return 200
        return f"{found!r} instead of {right!r} for {messages[0]['content']!r}, loops {loops}"


def question(rng: random.Random) -> list[dict[str, str]]:
    """The messages of a puzzle; one of four has many facts."""
    rng = random.Random(rng.randrange(QUESTIONS))
    facts = ""
    for _ in range(rng.choice([1, 1, 1, 12])):
        people = rng.sample(NAMES, 4)
        facts += " ".join(f"{a} likes {b}." for a, b in pairwise(people)) + " "
    return [{"role": "user", "content": f"{facts}{people[0]} likes someone who likes who?"}]


def chat(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """A short answer, with varying options."""
    messages, loops = question(rng), rng.choice([None, 1, 2, 3, 4])
    body = {"messages": messages, "max_tokens": LENGTHS[0], **({} if loops is None else {"loops": loops})}
    more = rng.choice([GREEDY, GREEDY | {"logprobs": True, "top_logprobs": 5}, {"n": 3, "temperature": 1, "lens": 2}])
    response = client.post(CHAT, json=body | more)
    if response.status_code != 200 or "n" in more:
        return response.status_code, {200, 429}
    found = response.json()["choices"][0]["message"]["content"]
    return expected.compare(found, messages, LENGTHS[0], loops), {200}


def stream(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """A complete stream."""
    messages = question(rng)
    body = {"messages": messages, "stream": True, "max_tokens": LENGTHS[1], "lens": 2} | GREEDY
    with client.stream("POST", CHAT, json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    if response.status_code != 200:
        return response.status_code, {429}
    if not lines or lines[-1] != "[DONE]":
        return 0, {200}
    choices = [choice for line in lines[:-1] for choice in json.loads(line).get("choices", ())]
    found = "".join(choice["delta"].get("content") or "" for choice in choices)
    return expected.compare(found, messages, LENGTHS[1], None), {200}


def leave(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """A stream of a long answer; the client disconnects after some lines."""
    lines = rng.randint(0, 40)
    with client.stream("POST", CHAT, json={"messages": question(rng), "stream": True, **ENDLESS}) as response:
        for i, _ in enumerate(response.iter_lines()):
            if i >= lines:
                break
    return response.status_code, {200, 429}


def give_up(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """A long answer; the client disconnects before it."""
    try:
        response = client.post(CHAT, json={"messages": question(rng), **ENDLESS}, timeout=rng.uniform(0.01, 0.3))
    except httpx.TimeoutException:
        return 499, {499}
    return response.status_code, {200, 429}


def complete(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """Scores of a prompt, as requested by evaluation programs."""
    body = {"prompt": question(rng)[0]["content"], "echo": True, "logprobs": 1, "max_tokens": 1}
    return client.post(COMPLETE, json=body).status_code, {200, 429}


def embed(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """Embeddings of two texts."""
    texts = [question(rng)[0]["content"] for _ in range(2)]
    return client.post(EMBED, json={"input": texts}).status_code, {200, 429}


def schema(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """An answer under a JSON schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return client.post(CHAT, json={"messages": question(rng), "response_format": form}).status_code, {200, 429}


def nonsense(client: httpx.Client, rng: random.Random, expected: Expected) -> Answer:
    """An invalid body."""
    body = rng.choice(
        [b"", b"{", b"[]", rng.randbytes(100), b"[" * 10_000, b'{"messages": 5}', b'{"prompt": ""}', b'{"input": [[]]}',
         b'{"messages": [{"role": "user", "content": "' + b"word " * 2000 + b'"}]}',
         b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "xml"}}']
    )  # fmt: skip
    path = rng.choice([CHAT, COMPLETE, EMBED])
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    return response.status_code, {400}


KINDS: dict[Callable[[httpx.Client, random.Random, Expected], Answer], int] = {
    chat: 4, stream: 3, leave: 2, give_up: 2, complete: 2, embed: 1, schema: 1, nonsense: 3,
}  # fmt: skip


def work(
    url: str, seed: int, end: float, expected: Expected, seen: Counter[tuple[str, int | str]], wrong: list[str]
) -> None:
    """One client, until the end of the test."""
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while time.monotonic() < end:
            [kind] = rng.choices(list(KINDS), list(KINDS.values()))
            try:
                status, right = kind(client, rng, expected)
            except httpx.HTTPError as problem:
                wrong.append(f"{kind.__name__}: {problem!r}")
                continue
            seen[kind.__name__, status if isinstance(status, int) else "different"] += 1
            if status not in right:
                wrong.append(f"{kind.__name__}: {status}")


@contextmanager
def started(model: str | None, parallel: int, noise: list[str]) -> Iterator[tuple[str, int]]:
    """URL and process id of a new server; what it prints goes to `noise`, also a wrong exit status."""
    more = f"--port 0 --queue 7 --cache 16 --kv fp32 --parallel {parallel}".split()
    command = [sys.executable, "-m", "ouro_edge", "serve", *([model] if model else []), *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r" at (http://\S+)$", line.strip())))
        reader = threading.Thread(target=lambda: noise.extend(server.stderr or ()))
        reader.start()
        try:
            yield url, server.pid
        finally:
            server.terminate()
            if server.wait(30):
                noise.append(f"exit status {server.returncode}")
            reader.join()


def main() -> int:
    """Run the test. Returns 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: Ouro-nano")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=8, help="requests that the server computes at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the first client's requests")
    parser.add_argument("--server", help="URL of a server that runs already, with --kv fp32")
    parser.add_argument("--pid", type=int, help="process id of that server")
    options = parser.parse_args()
    if (options.server is None) != (options.pid is None):
        parser.error("--server and --pid belong together")
    expected, noise = Expected(options.model), list[str]()
    given = nullcontext((options.server, options.pid))
    with given if options.server else started(options.model, options.parallel, noise) as (url, pid):
        process = psutil.Process(pid)
        seen: Counter[tuple[str, int | str]] = Counter()
        wrong: list[str] = []
        begin = time.monotonic()
        end = begin + options.minutes * 60
        clients = [
            threading.Thread(target=work, args=(url, options.seed + i, end, expected, seen, wrong))
            for i in range(options.clients)
        ]
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
    for (kind, status), count in sorted(seen.items(), key=str):
        print(f"{kind:>10} {status} {count}")
    print(f"idle CPU after: {idle:.1%} of a core; {health}; {len(noise)} lines on stderr")
    print(f"{len(wrong)} wrong", *sorted(Counter(wrong).items()), *noise[:20], sep="\n")
    return int(bool(wrong or noise or health["running"]))


if __name__ == "__main__":
    sys.exit(main())
