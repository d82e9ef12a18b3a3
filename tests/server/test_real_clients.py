"""Clients that people use, each in a process of its own environment, against a real and a scripted model."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.testing import MockModel

pytestmark = pytest.mark.clients
SCRIPTS = Path(__file__).parents[1] / "clients"
TEMPLATE = "{{ tools or '' }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
CALL = '<tool_call>{"name": "find", "arguments": {"who": "Ada"}}</tool_call>'


def clients():
    """The directory that `make test-clients` fills: an environment per client, and node's modules."""
    if not (home := os.environ.get("OURO_EDGE_CLIENTS")):
        pytest.skip("OURO_EDGE_CLIENTS names no directory with the clients")
    return Path(home)


def run(command, *urls):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OPENAI_API_KEY", "OPENAI_BASE_URL")}
    environment["NO_PROXY"] = "*"
    done = subprocess.run([*command, *urls], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split()[-1] == "ok", done.stderr[-3000:]


def scripted():
    """A model that calls `find` and then answers, again and again."""
    model = MockModel([CALL, "In the garden."])
    model.text = replace(model.text, template=ChatTemplate(TEMPLATE))
    return model


@pytest.mark.parametrize("name", ["langchain", "instructor", "pydantic_ai", "agents"])
def test_python_clients(serve, name):
    python = clients() / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([str(python), str(SCRIPTS / f"{name}_client.py")], f"{serve().url}/v1", f"{serve(scripted()).url}/v1")


def test_openai_for_node(serve):
    modules, node = clients() / "node", shutil.which(os.environ.get("NODE", "node"))
    if not node:
        pytest.skip("node is missing")
    script = shutil.copy(SCRIPTS / "node_client.mjs", modules / "node_client.mjs")  # imports follow the file
    run([node, str(script)], f"{serve().url}/v1", f"{serve(scripted()).url}/v1")
