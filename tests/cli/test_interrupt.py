"""Ctrl-C while modules are still being imported: quiet, and status 130 as shells have it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HOOK = """
import runpy, sys

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Hook())
"""
STARTS = {
    "module": "runpy.run_module('ouro_edge', run_name='__main__')",
    "script": "from ouro_edge.__main__ import main; main()",
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["inspect"]),
        ("ouro_edge.cli", ["inspect"]),
        ("ouro_edge.cli.inspect", ["inspect"]),
        ("ouro_edge.loading", ["run", "-p", "hello"]),  # imported by the command
        ("ouro_edge.cli.verify", ["--help"]),
    ],
)
def test_it_ends_quietly(start, module, arguments):
    code = HOOK.format(module=module) + STARTS[start]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_script_is_the_module():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"ouro-edge": "ouro_edge.__main__:main"}
