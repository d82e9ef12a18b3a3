"""The examples of docs/server.md are run, on a real server, and its tables are held to the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ouro_edge.server.options import IGNORED

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not here")
def test_curl(server):
    [block] = re.findall(r"```console\n(.+?)```", PAGE, re.S)
    commands = re.split(r"^\$ ", block, flags=re.M)[1:]
    assert len(commands) == 7
    for command in commands:
        arguments = shlex.split(command.replace("localhost:8080", f"127.0.0.1:{server.port}"))
        result = subprocess.run([*arguments, "--fail", "--noproxy", "*"], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0 and result.stdout, command
        assert '"error"' not in result.stdout


def test_python(server, capsys):
    blocks = re.findall(r"```python\n(.+?)```", PAGE, re.S)
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block.replace("http://localhost:8080", server.url), "docs/server.md", "exec"), names)
        names["client"].close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Cleo" and lines[2].startswith("'Cleo' 4 [[{'token': ")
    assert set(json.loads(lines[-3])) == {"name", "age"} and "name='find'" in lines[-2]
    assert lines[-1].startswith("Cleo ")


def test_the_examples_of_json_have_the_real_fields(server):
    chunk, usage = (json.loads(block) for block in re.findall(r"```json\n(.+?)```", PAGE, re.S))
    answer = server.chat(lens=2).json()
    assert set(usage) == set(answer["usage"]) and set(usage["ouro_edge"]) == set(answer["usage"]["ouro_edge"])
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "lens": 2}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    choice = next(event["choices"][0] for event in events if "ouro_edge" in event["choices"][0])
    assert set(choice) == set(chunk) and set(choice["ouro_edge"]) == set(chunk["ouro_edge"])
    assert set(choice["ouro_edge"]["lens"][0][0]) == {"token", "prob"}


def test_ignored_fields_are_named():
    [listed] = re.findall(r"Ignored are (.+?)\.\s+`null`", PAGE, re.S)
    assert set(re.findall(r"`(\w+)`", listed)) == IGNORED - {"model"}
