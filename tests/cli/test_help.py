"""`ouro-edge --help`: every command with a complete summary on its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import ouro_edge.cli
from ouro_edge.cli import main

COMMANDS = main.list_commands(None)


def test_every_summary_fits_on_its_line() -> None:
    lines = CliRunner().invoke(main, ["--help"], terminal_width=80).output.splitlines()
    listed = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in listed] == COMMANDS
    for line in listed:
        assert line.endswith(".") and not line.endswith("..."), line
        assert len(line) <= 80, line


def test_every_command_has_a_module() -> None:
    modules = {path.stem.replace("_", "-") for path in Path(ouro_edge.cli.__file__).parent.glob("*.py")}
    assert set(COMMANDS) <= modules


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_shown(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0 and result.output.startswith(f"Usage: main {name}")
