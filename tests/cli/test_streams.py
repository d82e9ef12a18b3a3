"""Closed standard streams, a reader that leaves, input that is not text, a terminal that hangs up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell and signals")
ANSWER = "Hello! I answer small puzzles"


def shell(command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = command.replace("ouro-edge", f"'{sys.executable}' -m ouro_edge")
    return subprocess.run(["sh", "-c", line], input=stdin, capture_output=True, timeout=60)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["run -p hello", "run -p hello --json", "chat", "cache", "--version"])
def test_closed_streams_end_nothing(closed, command):
    done = shell(f"ouro-edge {command} {closed}", b"hello\n")
    without_input = command == "chat" and "<" in closed
    assert done.returncode == (1 if without_input else 0)
    assert b"unexpected" not in done.stderr and b"Traceback" not in done.stderr
    if ">&- " not in closed + " " and command.startswith("run"):
        assert ANSWER in done.stdout.decode()


def test_a_reader_that_leaves_ends_a_conversation_quietly():
    done = shell(
        "ouro-edge chat 2>err | head -1; cat err >&2; rm err", b"hello\nwhat can you do?\nhello\nhello\nhello\n"
    )
    assert ANSWER in done.stdout.decode()
    assert b"Exception" not in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command",
    ["run -p hello", "run -p hello --json", "chat", "inspect", "inspect --json", "cache", "trace -p hello", "--help",
     "run --help", "--version"],
)  # fmt: skip
def test_a_full_disk_is_said_in_one_line(command):
    done = shell(f"ouro-edge {command} >/dev/full", b"hello\n")
    said = done.stderr.decode().splitlines()
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert said[-1] == (
        "Error: the output cannot be written: No space left on device; free some space, or write it to another disk"
    )
    assert b"unexpected" not in done.stderr and b"ignored" not in done.stderr


@pytest.mark.parametrize("command", ["run", "run --raw", "chat"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_input_that_is_not_text_is_said(command, locale):
    done = shell(f"LC_ALL={locale} ouro-edge {command}", b"h\xe9llo\n")
    assert done.returncode == 1
    assert "standard input is not valid utf-8 text" in done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_runs_the_clean_up(number, tmp_path):
    code = (
        "import click, time\n"
        "from ouro_edge.cli import main\n"
        "from ouro_edge.system.files import atomic_write\n"
        "from pathlib import Path\n"
        "@click.command('cache')\n"
        "def command():\n"
        f"    with atomic_write(Path({str(tmp_path / 'file')!r})):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "import ouro_edge.cli.cache as module\n"
        "module.command = command\n"
        "main(['cache'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_cannot_be_decoded_leaves_standard_output_clean(tmp_path, bundle_of):
    import json
    import shutil

    from ouro_edge.bundle.directory import sha256

    path = shutil.copytree(bundle_of(), tmp_path / "model")
    graph, manifest = path / "model.onnx", path / "ouro_edge.json"
    graph.write_bytes(b"\x08" + bytes(range(200)))
    data = json.loads(manifest.read_text())
    data["files"]["model.onnx"] = {"size": graph.stat().st_size, "sha256": sha256(graph)}
    manifest.write_text(json.dumps(data))
    done = shell(f"ouro-edge run {path} --ids 1 --json")
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and b"is not a graph that ouro-edge writes" in done.stderr
