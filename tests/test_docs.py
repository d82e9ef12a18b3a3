"""The examples of the documents are executed, with Ouro-nano in the place of the large model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ouro_edge.cli import main
from ouro_edge.loading import default_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKPOINT = str(ROOT / "training" / "Ouro-nano")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty directory to work in, with some text for fit-gate and calibrate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    lines = (ROOT / "benchmarks" / "nano" / "questions.validation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "text.jsonl").write_text("".join(lines[::4]))
    (tmp_path / "notes.txt").write_text("".join(json.loads(line)["prompt"] + "\n" for line in lines[:400]))
    return tmp_path


def ouro(line: str) -> str:
    """Run a command line and return its output; a server is not started, only its arguments are parsed."""
    arguments = [a.replace("ByteDance/Ouro-1.4B-Thinking", CHECKPOINT) for a in shlex.split(line, comments=True)]
    if arguments[0] == "serve" and "--help" not in arguments:
        main.get_command(None, "serve").make_context("serve", arguments[1:])
        return ""
    result = CliRunner().invoke(main, arguments, input="hello\n")
    assert result.exit_code == 0, (line, result.output)
    return result.stdout


PAGES = {
    "README.md": 6,
    "docs/tutorial.md": 8,
    "docs/fit-gate.md": 3,
    "docs/long-contexts.md": 2,
    "docs/running.md": 3,
    "docs/new-weights.md": 4,
    "docs/huggingface.md": 4,
}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_python_of_a_page(desk, page, capsys):
    text = (ROOT / page).read_text()
    commands = re.findall(r"^\$ ouro-edge (.+)$", text, re.M)
    assert len(commands) >= PAGES[page]
    if not any(line.startswith("export") for line in commands):
        ouro("export ByteDance/Ouro-1.4B-Thinking ouro-int4")
    for line in commands:
        ouro(line)
    for code in re.findall(r"```python\n(.+?)```", text, re.S):
        exec(compile(code, page, "exec"), {})
    if page == "README.md":
        assert (desk / "depth.html").stat().st_size > 1000
        assert (desk / "ouro-int4" / "exit_gate.json").is_file()


def test_commands_and_options_for_boards(desk):
    boards = (ROOT / "docs" / "boards.md").read_text()
    commands = re.findall(r"^\$ ouro-edge (.+)$", boards, re.M)
    assert len(commands) == 4
    for line in commands:
        ouro(line)
    known = "".join(ouro(f"{name} --help") for name in ("run", "export", "bench"))
    for option in re.findall(r"`(--[a-z-]+)", boards):
        assert option in known, option


def test_the_first_command_answers_as_shown():
    [(question, answer)] = re.findall(r"\n    (Ada likes .+\?)\n    (\w+)\n", README)
    assert question in (ROOT / "Makefile").read_text()
    assert ouro(f'run -p "{question}"').strip() == answer


def test_the_trace_shown_is_the_trace_made():
    [line] = re.findall(r"^\$ ouro-edge (trace -p .+)$", README, re.M)
    shown = re.search(r"^('\w+') +(\d) ", README, re.M)
    made = ouro(line).splitlines()[1].split()
    assert shown is not None and made[:2] == [shown[1], shown[2]]


def test_the_examples_of_the_api_print_what_is_shown_below_them(capsys):
    examples = re.findall(r"```python\n(.+?)```\n\n```text\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.S)
    assert len(examples) == 5
    for code, shown in examples:
        exec(compile(code, "api.md", "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out == shown


def test_documents_link_to_what_exists():
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md", "packaging/*/README.md", "training/README.md"):
        for document in ROOT.glob(pattern):
            for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
                assert (document.parent / link).exists(), (document.name, link)


def test_the_architecture_names_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("## Where do I change X?") : text.index("## Deliberate deviations")]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "---" not in row]
    assert len(rows) > 15
    paths = re.findall(
        r"`([a-z_/]+(?:\.py|/))`", text[text.index("## Engine interface") : text.index("## Deliberate deviations")]
    )
    assert len(paths) > 40
    folders = [ROOT, ROOT / "ouro_edge", *(ROOT / "ouro_edge").glob("*/"), *(ROOT / "ouro_edge").glob("*/*/")]
    assert [path for path in paths if not any((folder / path).exists() for folder in folders)] == []


def test_the_model_in_the_box_is_the_checkpoint_in_the_repository():
    bundled = default_model()
    assert bundled is not None
    assert (bundled / "config.json").read_bytes() == (ROOT / "training" / "Ouro-nano" / "config.json").read_bytes()
    assert "FAILED" not in ouro(f"verify {bundled} --against {CHECKPOINT}")
