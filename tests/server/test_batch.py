"""The batch command: answers as from the server, one line for each mistake, and nothing lost or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ouro_edge.cli import main

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def request(custom_id: str, url: str = CHAT, body: Any = HELLO, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def write(path: Path, *lines: Any) -> None:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def batch(*arguments: Any) -> Any:
    result = CliRunner().invoke(main, ["batch", *map(str, arguments), "--threads", "1", "--parallel", "4"])
    assert "Traceback" not in result.output
    return result


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_the_server(files, server):
    source, target = files
    sampled = {**HELLO, "n": 2, "seed": 3, "temperature": 1.5, "rollout": True, "exit": "gate:0.5,floor=2,ceiling=3"}
    bodies = {
        "a": (CHAT, sampled),
        "b": (COMPLETIONS, {"prompt": "Ada likes Ben.", "max_tokens": 3, "model": "any"}),
        "c": (EMBEDDINGS, {"input": ["Ada", "Ben"], "model": server.engine.model.name}),
    }
    write(source, *(request(name, *parts) for name, parts in bodies.items()))
    result = batch(source, target)
    assert result.exit_code == 0, result.output
    assert "3 lines answered, 0 failed" in result.stderr
    found = {answer["custom_id"]: answer for answer in answers(target)}
    assert set(found) == set(bodies)
    for name, (url, body) in bodies.items():
        expected = server.http.post(url, json=body).json()
        assert found[name]["error"] is None and found[name]["response"]["status_code"] == 200
        got = found[name]["response"]["body"]
        assert set(got) == set(expected)
        for mine, its in zip(got.get("choices", ()), expected.get("choices", ()), strict=True):
            assert set(mine) == set(its)
            for part in ("index", "text", "message", "finish_reason"):
                assert mine.get(part) == its.get(part)
        for mine, its in zip(got.get("data", ()), expected.get("data", ()), strict=True):
            assert mine["embedding"] == pytest.approx(its["embedding"], abs=1e-3)  # rows share calls, which round
    assert set(found["a"]["response"]["body"]["choices"][0]["rollout"]["depths"]) <= {2, 3}


def test_every_bad_line_gets_its_own_error(files):
    source, target = files
    write(
        source,
        b"\xef\xbb\xbf" + json.dumps(request("good")).encode(),
        b'{"custom_id": "torn", ',  # 2
        b"[1, 2]",  # 3
        b"\xff\xfe",  # 4
        b"   ",  # blank: not a line of the batch
        {"method": "POST", "url": CHAT, "body": HELLO},  # 6: no custom_id
        request("get", method="GET"),  # 7
        request("where", url="/v1/images"),  # 8
        request("model", body={**HELLO, "model": "gpt-5"}),  # 9
        request("stream", body={**HELLO, "stream": True}),  # 10
        request("good"),  # 11
        request("list", body=[]),  # 12
        request("field", body={**HELLO, "max_tokens": -5}),  # answered with 400, as by the server
        b'{"custom_id": "deep", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",  # 14
        b'{"custom_id": "' + b"x" * (5 << 20) + b'"}',  # 15: too long
        request("", body=HELLO),  # 16
        request("last", extra=1),  # 17
        request("ok"),
    )
    result = batch(source, target)
    assert result.exit_code == 3, result.output
    assert "2 lines answered, 15 failed" in result.stderr
    found = answers(target)
    assert len(found) == 17
    lines = {a["error"]["line"]: (a["custom_id"], a["error"]["code"]) for a in found if a["error"]}
    assert all(a["response"] is None and a["error"]["message"] for a in found if a["error"])
    assert lines == {
        2: (None, "invalid_json_line"), 3: (None, "invalid_json_line"), 4: (None, "invalid_json_line"),
        6: (None, "invalid_request"), 7: ("get", "invalid_method"), 8: ("where", "invalid_url"),
        9: ("model", "model_not_found"), 10: ("stream", "invalid_request"), 11: ("good", "duplicate_custom_id"),
        12: ("list", "invalid_request"), 14: (None, "invalid_json_line"), 15: (None, "line_too_long"),
        16: (None, "invalid_request"), 17: ("last", "unknown_parameter"),
    }  # fmt: skip
    status = {a["custom_id"]: a["response"]["status_code"] for a in found if a["response"]}
    assert status == {"good": 200, "ok": 200, "field": 400}
    [body] = [a["response"]["body"] for a in found if a["custom_id"] == "field"]
    assert body["error"]["param"] == "max_tokens"
    before = target.read_bytes()
    again = batch(source, target)  # everything is finished: nothing is computed, the failures still count
    assert again.exit_code == 3 and "2 lines answered, 15 failed" in again.stderr and target.read_bytes() == before


def test_any_model_name_is_accepted_on_request(files):
    source, target = files
    write(source, request("a", body={**HELLO, "model": "gpt-5"}))
    assert batch(source, target, "--any-model").exit_code == 0


def test_an_output_that_exists(files):
    source, target = files
    write(source, request("a"), request("b"), b"nonsense")
    assert batch(source, target).exit_code == 3
    whole = target.read_bytes()
    lines = sorted(whole.splitlines(keepends=True))
    for kept in (0, 1, 2):
        target.write_bytes(b"".join(lines[:kept]) + lines[kept][:30])  # torn in the last line
        result = batch(source, target)
        assert result.exit_code == 3, result.output
        assert sorted((a["custom_id"] or "") for a in answers(target)) == ["", "a", "b"]
        assert target.read_bytes().startswith(b"".join(lines[:kept]))
    target.write_bytes(whole)
    for other in ((request("a"), request("c"), b"nonsense"), (request("a"), request("b")), (b"x", request("a"))):
        write(source, *other)
        result = batch(source, target)
        assert result.exit_code == 1 and "was not made from" in result.stderr and "--overwrite" in result.stderr
        assert target.read_bytes() == whole
    write(source, request("c"))
    assert batch(source, target, "--overwrite").exit_code == 0
    assert [a["custom_id"] for a in answers(target)] == ["c"]


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b"{}\n", b"[]\n", b'{"a": 1}\n', b"\0\1"])
def test_a_file_that_is_no_output_stays_as_it_is(files, content):
    source, target = files
    write(source, request("a"))
    target.write_bytes(content)
    result = batch(source, target)
    assert result.exit_code == 1 and "batch" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert target.read_bytes() == content


def test_files_that_cannot_be_used(files, tmp_path):
    source, target = files
    assert "cannot be read" in batch(source, target).stderr and not target.exists()
    write(source, request("a"))
    content = source.read_bytes()
    assert "is the input as well" in batch(source, source, "--overwrite").stderr and source.read_bytes() == content
    assert "cannot be written" in batch(source, tmp_path / "no" / "out").stderr
    assert "cannot be written" in batch(source, tmp_path).stderr
    if os.path.exists("/dev/null"):
        assert "is not a file" in batch(source, "/dev/null").stderr
    target.write_text("old")
    for name in ("no/such-model", str(source)):
        result = batch(source, target, "--overwrite", name)
        assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
        assert target.read_text() == "old"
    target.unlink()
    assert batch(source, target, "no/such-model").exit_code == 1 and not target.exists()
    write(source)
    assert batch(source, target).exit_code == 0


def test_two_batches_do_not_share_an_output(files):
    pytest.importorskip("fcntl")
    from ouro_edge.server.batch.output import Output

    source, target = files
    write(source, request("a"))
    with Output(target):
        result = batch(source, target)
    assert result.exit_code == 1 and "in use by another batch" in result.stderr


@pytest.fixture
def start(files, nano):
    """A batch of 200 lines in a process of its own; start(prelude) runs Python code first."""
    source, target = files
    body = {**HELLO, "max_tokens": 30, "logit_bias": {str(i): -100 for i in nano.stop_ids}}
    write(source, *(request(f"id {i}", body=body) for i in range(200)))
    processes = []

    def run(prelude: str = "") -> subprocess.Popen[str]:
        code = f"{prelude}\nimport sys\nfrom ouro_edge.cli import main\nmain(sys.argv[1:])"
        arguments = ["batch", str(source), str(target), "--threads", "1", "--parallel", "4"]
        processes.append(subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def at_least(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate()[1])


@posix
def test_a_killed_batch_goes_on(files, start):
    _, target = files
    for lines in (5, 60, 120):
        process = start()
        at_least(target, lines, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = target.read_bytes()
        assert lines <= kept.count(b"\n") < 200
    process = start()
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "200 lines answered, 0 failed" in message
    whole = kept[: kept.rindex(b"\n") + 1]
    assert target.read_bytes().startswith(whole)
    ids = [answer["custom_id"] for answer in answers(target)]
    assert len(ids) == 200 and set(ids) == {f"id {i}" for i in range(200)}


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_says_how_to_go_on(files, start, number, status):
    _, target = files
    process = start()
    at_least(target, 10, process)
    process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == status and "run the command again, without --overwrite, to continue" in message
    assert "Traceback" not in message
    assert target.read_bytes().endswith(b"\n") and 10 <= len(answers(target)) < 200


@posix
def test_a_full_disk_keeps_the_finished_lines(files, start):
    _, target = files
    process = start("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))")
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in message
    assert f"Error: {target} cannot be written: File too large" in message and "to continue" in message
    assert target.read_bytes().endswith(b"\n") and target.stat().st_size <= 40_000
    kept = len(answers(target))
    assert 0 < kept < 200
    process = start()
    assert f"{kept} of 200 lines are finished already" in process.communicate(timeout=120)[1]
    assert process.returncode == 0 and len({a["custom_id"] for a in answers(target)}) == 200


def test_the_input_is_not_held(tmp_path, nano):
    """Lines are read when a slot is free, not in advance."""
    import asyncio

    from ouro_edge.server.batch.files import BatchInput
    from ouro_edge.server.batch.output import Output
    from ouro_edge.server.batch.run import run_batch
    from ouro_edge.server.engine import Engine
    from ouro_edge.server.limits import Limits

    source, target = tmp_path / "in", tmp_path / "out"
    write(source, *(request(str(i)) for i in range(30)))
    requests, ahead = BatchInput(source), []
    pending = requests.pending()
    read, requests.pending = [], lambda: (read.append(line.number) or line for line in pending)
    with Output(target) as output:
        asyncio.run(
            run_batch(
                Engine(nano, Limits(parallel=3, waiting=3)), requests, output,
                finished=lambda: ahead.append(len(read) - requests.done),
            )
        )  # fmt: skip
    assert len(ahead) == 30 and max(ahead) <= 3
