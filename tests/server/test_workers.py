"""`ouro-edge serve --workers`: one port, several processes, metrics that add up, an end for all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from ouro_edge.cli import main
from ouro_edge.server.limits import Access, Limits
from ouro_edge.server.metrics import render
from ouro_edge.server.workers.counters import SharedCounters, retire
from ouro_edge.server.workers.settings import WorkerSettings
from ouro_edge.server.workers.supervisor import Supervisor, thread_shares

posix = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX")
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


class Running:
    """A server of two workers."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ouro_edge", "serve", "--port", "0", "--workers", "2", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if found := re.search(r" at (http://\S+)$", line.strip()):
                self.url = found[1]
                return
        raise AssertionError((self.process.wait(), self.lines))

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(map(int, children))

    def chat(self, url_path: str = CHAT, **fields) -> httpx.Response:
        """A request on a connection of its own, which goes to either worker."""
        return httpx.post(self.url + url_path, json={**BODY, **fields}, trust_env=False, timeout=60)

    def metric(self, name: str) -> float:
        text = httpx.get(self.url + "/metrics", trust_env=False, timeout=60).text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M))

    def wait_for_metric(self, name: str, value: float) -> None:
        """Fails when it is never reached; the workers write twice a second."""
        for _ in range(200):
            if self.metric(name) == value:
                return
            time.sleep(0.05)
        raise AssertionError((name, self.metric(name), value))


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.process.terminate()
    running.process.communicate(timeout=60)


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")


@linux
def test_workers_share_the_port_and_their_metrics_add_up(server):
    assert any(re.fullmatch(r"2 workers; threads: .+\.", line) for line in server.lines)
    first, second = server.workers
    requests = f'ouro_edge_requests_total{{path="{CHAT}",status="200"}}'
    for pid in (first, second):  # only the other one accepts
        os.kill(pid, signal.SIGSTOP)
        for _ in range(3):
            assert server.chat().status_code == 200
        os.kill(pid, signal.SIGCONT)
    server.wait_for_metric(requests, 6)
    server.wait_for_metric("ouro_edge_generation_seconds_count", 6)
    server.wait_for_metric("ouro_edge_requests_running", 0)
    assert {server.metric('ouro_edge_tokens_total{kind="completion"}') for _ in range(10)} == {12}  # whoever answers


@linux
def test_a_dead_worker_is_replaced_and_its_counts_remain(server):
    requests = f'ouro_edge_requests_total{{path="{CHAT}",status="200"}}'
    for _ in range(4):
        server.chat()
    server.wait_for_metric(requests, 4)
    time.sleep(1)  # what was counted in the last half second may be lost with the process
    first, second = server.workers
    os.kill(first, signal.SIGKILL)
    assert server.process.stderr is not None
    assert server.process.stderr.readline() == (
        "Worker 0 died (status -9); its requests are lost, another one is started.\n"
    )
    assert server.chat().status_code == 200
    server.wait_for_metric(requests, 5)
    for _ in range(400):
        if len(server.workers) == 2:
            break
        time.sleep(0.05)
    assert second in server.workers and first not in server.workers and len(server.workers) == 2


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(number):
    server = Running("--loops", "2")
    workers = server.workers
    assert set(server.chat().json()["choices"][0]["ouro_edge"]["depths"]) == {2}
    server.process.send_signal(number)
    _, error = server.process.communicate(timeout=60)
    assert (server.process.returncode, error) == (0, "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@linux
def test_workers_end_when_the_supervisor_is_killed(server):
    workers = server.workers
    server.process.kill()
    server.process.wait(10)
    for _ in range(400):
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(left)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@posix
def test_what_no_worker_can_do_is_said_once():
    command = [sys.executable, "-m", "ouro_edge", "serve", "--port", "0", "--workers", "2", "--loops", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stderr.count("1 to 4 loops") == 1 and "Traceback" not in done.stderr
    assert "worker 0 could not start (status 1)" in done.stderr


def test_on_windows_it_is_refused(monkeypatch):
    monkeypatch.setattr("ouro_edge.server.workers.supervisor.POSIX", False)
    result = CliRunner().invoke(main, ["serve", "--port", "0", "--workers", "2"])
    assert result.exit_code == 1 and "--workers needs Linux or macOS" in result.stderr


def test_workers_that_die_again_and_again_end_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr("ouro_edge.server.workers.supervisor.MAX_DEATHS", 0)
    from ouro_edge.errors import OuroEdgeError
    from ouro_edge.loading import default_model
    from ouro_edge.server.listen import open_socket

    with open_socket("127.0.0.1", 0) as listener:
        settings = WorkerSettings(
            model=str(default_model()), loading={}, generation={}, limits=Limits(), access=Access(),
            listener=listener.fileno(), metrics=tmp_path, number=0,
        )  # fmt: skip
        supervisor = Supervisor(settings, [1], print)
        with pytest.raises(OuroEdgeError, match=r"1 workers died within 60 seconds, the last with status -9"):
            supervisor.run(lambda about: os.kill(supervisor.pids[0], signal.SIGKILL))
    assert supervisor.pids == []


@pytest.mark.parametrize(
    ("threads", "workers", "shares"), [(2, 2, [1, 1]), (5, 2, [3, 2]), (1, 3, [1, 1, 1]), (8, 3, [3, 3, 2])]
)
def test_threads_are_divided(threads, workers, shares):
    assert thread_shares(threads, workers) == shares


def test_settings_come_back():
    settings = WorkerSettings(
        model="m", loading={"kv": "int8", "threads": 2}, generation={"loops": 2}, limits=Limits(parallel=3),
        access=Access(api_key="k", hosts=frozenset({"a", "b"}), origins=("*",)), listener=5, metrics=Path("x"),
        number=1,
    )  # fmt: skip
    assert WorkerSettings.from_json(settings.to_json()) == settings


def test_counters_are_added_and_those_of_the_dead_stay(tmp_path):
    requests, running = 'ouro_edge_requests_total{path="/",status="200"}', "ouro_edge_requests_running"
    one, two = (SharedCounters(tmp_path, number) for number in (0, 1))
    one.write({requests: 3, running: 2})
    two.write({requests: 4, running: 1})
    assert one.add_others({requests: 5, running: 1}) == {requests: 9, running: 2}
    retire(tmp_path, 1, 77)
    retire(tmp_path, 5, 78)  # it never wrote
    assert one.add_others({requests: 5, running: 1}) == {requests: 9, running: 1}
    assert f"{requests} 9\n" in render({requests: 9, running: 1})
