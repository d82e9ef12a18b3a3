"""Requests of `requests.BODIES` to a server: every answer is a result or an error of the client."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fuzzing.requests import BODIES

_ADMITTED = {200, 400, 413, 415, 429}
_SECONDS = 60.0  # for one answer; a longer one is a hang


class Server:
    """`ouro-edge serve` in a process of its own, with its log."""

    def __init__(self) -> None:
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "ouro_edge", "serve", "--port", "0", "--threads", "1"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.url = self._url()

    def _url(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            words = self.log.replace("/v1", " ").split()
            if urls := [word.rstrip("/") for word in words if word.startswith("http://")]:
                return urls[0]
            time.sleep(0.1)
        sys.exit(f"the server does not start: {self.log[-500:]}")

    @property
    def log(self) -> str:
        """What the server has printed."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(30)
        self._log.unlink()


def check(status: int, text: str) -> str | None:
    """What is wrong with an answer; None for a result, a stream of results or a one-line error."""
    if status not in _ADMITTED:
        return f"status {status}"
    blocks = [block.rpartition("data: ")[2] for block in text.split("\n\n") if block and not block.startswith(": ")]
    values = [text] if text.startswith("{") else [block for block in blocks if block != "[DONE]"]
    try:
        parsed = [json.loads(value) for value in values]
    except ValueError:
        return f"not JSON: {text[:200]!r}"
    if not parsed:
        return "an empty answer"
    for value in parsed:
        if value.get("type") == "response.failed" and value["response"]["error"]["code"] == "server_error":
            return f"a failed response: {value['response']['error']}"
        if value.get("error"):
            message = value["error"]["message"]
            if "\n" in message or not message or len(message) > 2000 or value["error"].get("code") == "internal_error":
                return f"the message {message[:300]!r}"
        elif status != 200:
            return "an error without a message"
    return None


def fuzz(minutes: float, first_seed: int) -> int:
    """Send requests for some minutes; the number of faults. A fault is reduced by Hypothesis and printed."""
    server, counts, faults = Server(), Counter[str](), 0
    end, round_ = time.monotonic() + 60 * minutes, first_seed
    client = httpx.Client(base_url=server.url, timeout=_SECONDS, trust_env=False)
    requests = st.sampled_from(sorted(BODIES)).flatmap(lambda path: st.tuples(st.just(path), BODIES[path]))

    def send(request: tuple[str, Any], cut: int | None) -> None:
        path, body = request
        content = json.dumps(body).encode()
        answer = client.post(path, content=content[:cut], headers={"Content-Type": "application/json"})
        counts[f"{path} {answer.status_code}"] += 1
        problem = check(answer.status_code, answer.text)
        assert problem is None, f"{problem}: POST {path} {content[:cut]!r}"
        assert server.process.poll() is None, "the server has ended"
        assert "Traceback" not in server.log, server.log[-3000:]

    while time.monotonic() < end:
        cuts = st.none() | st.none() | st.none() | st.none() | st.integers(1, 60)
        rounds = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        try:
            seed(round_)(rounds(given(requests, cuts)(send)))()
        except Exception as problem:
            faults += 1
            print(f"seed {round_}: {type(problem).__name__}: {str(problem)[:3000]}", flush=True)
            if server.process.poll() is not None or "Traceback" in server.log:
                server.stop()
                server = Server()
                client = httpx.Client(base_url=server.url, timeout=_SECONDS, trust_env=False)
        round_ += 1
    server.stop()
    print(f"{sum(counts.values())} requests, {faults} faults; seeds {first_seed} to {round_ - 1}")
    for name in sorted(counts):
        print(f"  {name}: {counts[name]}")
    return faults
