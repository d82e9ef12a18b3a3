"""Two processes that need the same conversion at once: one makes it, the other waits, or takes over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.system.progress import WAITING

# The maker stops in the middle of its conversion until it reads a line, or for ever.
MAKER = """
import sys, ouro_edge
stopped = False
def progress(done, total, what):
    global stopped
    if done > total // 2 and not stopped:
        stopped = True
        print("halfway", flush=True)
        sys.stdin.readline()
ouro_edge.load(sys.argv[1], progress=progress).close()
print("made", flush=True)
"""


def start_maker(**environment):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(GOLDEN)], stdin=-1, stdout=-1, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None and process.stdout.readline() == "halfway\n"
    return process


@pytest.mark.parametrize("killed", [False, True])
def test_one_converts_and_the_other_waits(killed, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    conversions, waits = [], []
    with start_maker() as maker:

        def progress(done, total, what):
            if what == WAITING:
                waits.append(maker.poll())
                assert maker.stdin is not None
                if killed:
                    maker.kill()
                else:
                    maker.stdin.write("\n")
                    maker.stdin.flush()
            else:
                conversions.append(what)

        ouro_edge.load(GOLDEN, progress=progress).close()
        assert waits == [None]
        assert bool(conversions) is killed  # what the other process has made is used
        assert killed or maker.wait(30) == 0
    entries = sorted(path for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert len(entries) == 1 and not list(tmp_path.glob("*.lock")) and not list(Path(tmp_path).glob(".*.lock"))


def test_the_command_line_says_that_it_waits(tmp_path):
    with start_maker(OURO_EDGE_CACHE=str(tmp_path)) as maker:
        command = [sys.executable, "-m", "ouro_edge", "run", str(GOLDEN), "-p", "x"]
        environment = {**os.environ, "OURO_EDGE_CACHE": str(tmp_path)}
        with subprocess.Popen(command, stderr=-1, stdout=-1, text=True, env=environment) as other:
            assert other.stderr is not None
            assert other.stderr.readline() == "Another process converts this model: waiting.\n"
            maker.kill()
            other.communicate(timeout=60)
