"""`ouro-edge serve` as a process: it starts, says where, stops when told, and refuses in one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from click.testing import CliRunner

from ouro_edge.cli import main

OURO = [sys.executable, "-m", "ouro_edge", "serve"]


@pytest.fixture
def start():
    """start(*arguments) runs the command and waits for its address; it ends with the test."""
    started = []

    def begin(*arguments, **environment):
        process = subprocess.Popen(
            [*OURO, "--port", "0", "--threads", "1", *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r" at (http://\S+)$", line.strip()):
                return process, found[1]
        raise AssertionError(f"it ended with {process.wait()}")

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def get(url, path="/health", **options):
    for _ in range(100):
        try:
            return httpx.get(url + path, trust_env=False, **options)
        except httpx.TransportError:  # the socket listens already, the server starts in a moment
            time.sleep(0.05)
    raise AssertionError("it does not answer")


posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_told_to_stop(start, number):
    process, url = start("--loops", "2")
    assert get(url).json()["status"] == "ok"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30).json()
    assert set(answer["choices"][0]["ouro_edge"]["depths"]) == {2}
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "", "")


@posix
def test_a_second_signal_ends_a_running_answer(start):
    process, url = start("--grace", "500")
    get(url)
    bias = {str(i): -100 for i in range(3)}
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "logit_bias": bias, "n": 16}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert "server_stopping" in rest[-1]
    assert process.wait(timeout=20) == 0


def test_two_servers_on_one_port(start):
    _, url = start()
    port = url.rsplit(":", 1)[1]
    result = subprocess.run([*OURO, "--port", port], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"port {port}" in result.stderr and "--port" in result.stderr
    assert get(url).status_code == 200


def test_a_port_that_somebody_else_has():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        result = CliRunner().invoke(main, ["serve", "--port", str(other.getsockname()[1])])
    assert result.exit_code == 1 and "cannot listen" in result.stderr


def test_the_key_from_the_environment(start):
    _, url = start(OURO_EDGE_API_KEY="secret\r")  # from a file with Windows' line ends
    assert get(url, "/v1/models").status_code == 401
    assert get(url, "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api-key", " "], "API key is empty"),
        (["--host", "no.such.host.invalid"], "cannot resolve the address"),
        (["--loops", "9", "--port", "0"], "1 to 4 loops"),
        (["--loops", "1", "--exit", "agreement", "--port", "0"], "exclude"),
        (["--port", "99999"], "99999"),
        (["no/such/model", "--port", "0"], "no/such/model"),
    ],
)
def test_refusals(arguments, words, monkeypatch):
    monkeypatch.delenv("OURO_EDGE_API_KEY", raising=False)
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code != 0 and words in result.stderr
    assert "Traceback" not in result.output


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("ouro_edge.cli.serve.find_spec", lambda name: None if name == "uvicorn" else real(name))
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 1
    assert result.stderr == "Error: serve needs uvicorn: install the extra serve (in a clone: pip install '.[serve]')\n"


def test_help_is_complete():
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    for option in ("--host", "--port", "--api-key", "--cors", "--allow-host", "--parallel", "--queue", "--timeout",
                   "--grace", "--cache", "--exit-threshold", "--loops", "--kv", "--ctx", "--threads"):  # fmt: skip
        assert re.search(rf"^  {option} .+ \S", text, re.M), option


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grace", "inf"], "--grace is inf; expected at most"),
        (["--timeout", "nan"], "--timeout is nan; expected at most"),
        (["--cors", "nonsense"], "--cors is 'nonsense'; expected an origin"),
    ],
)
def test_numbers_and_origins_that_make_no_sense(arguments, says):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 1 and says in result.stderr
