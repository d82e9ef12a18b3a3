"""`ouro-edge chat` in a pipe: what goes to standard output, what to standard error, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ouro_edge.cli import main

QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


def chat(*arguments, stdin):
    """Run the command in this process."""
    result = CliRunner().invoke(main, ["chat", *map(str, arguments)], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_help_is_complete():
    result = CliRunner().invoke(main, ["chat", "--help"])
    for word in ("--show-depth", "--resume FILE", "--system", "--think / --no-think", "--exit-threshold", "--seed",
                 "NO_COLOR", "OURO_EDGE_HISTORY", "/help", "Ctrl-C", "Ctrl-D", "Alt-Enter", "/save"):  # fmt: skip
        assert word in result.output, word
    assert all(len(line) <= 100 for line in result.output.splitlines())


def test_answers_go_out_and_all_else_to_standard_error():
    result = chat(stdin=f"{QUESTION}\n/stats\n/set temp\n/help\n/retry\n/undo\n/bye\nnot read\n")
    assert result.exit_code == 0 and result.stdout == "Cleo\nCleo\n"
    for part in ("turns", "temp", "/save FILE", "the same answer", "removed: Ada"):
        assert part in result.stderr, part


def test_depth_is_numbers_on_standard_error():
    result = chat("--show-depth", "--loops", 2, stdin=f"{QUESTION}\n/depth\n")
    assert "depths: 2 2\n" in result.stderr and "'Cleo'" in result.stderr
    assert "\x1b" not in result.output


def test_a_conversation_is_saved_and_resumed(tmp_path):
    file = tmp_path / "chat.json"
    assert chat("--system", "be kind", stdin=f"{QUESTION}\n/save {file} --kv\n").exit_code == 0
    assert json.loads(file.read_text())["system"] == "be kind" and (tmp_path / "chat.json.kv").stat().st_size > 1000
    if sys.platform != "win32":
        assert not any(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())
    result = chat("--resume", file, stdin="/retry\n/system\n")
    assert result.stdout == "Cleo\n" and "1 turn" in result.stderr and "be kind" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--resume", "nowhere.json"), "missing"),
        (("--resume", "x", "--system", "y"), "omit --system"),
        (("--loops", 2, "--exit", "agreement"), "exclude each other"),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    result = chat(*arguments, stdin="hello\n")
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and line.startswith("Error: ") and says in line and result.stdout == ""


def test_control_characters_of_the_model_stay_out(monkeypatch):
    from ouro_edge.runtime.events import Done, Timings, Token, Usage
    from ouro_edge.runtime.model import Model

    def says(self, prompt, **options):
        yield Token(300, "a\x1b[2Jb\x07", -0.1, 1, (1.0,))
        yield Done("stop", "", Usage(1, 0, 1, 1, 4, 1, 1.0), Timings(0.1, 0.1))

    monkeypatch.setattr(Model, "generate", says)
    assert chat(stdin="hello\n").stdout == "a[2Jb\n"


def test_a_pipe_needs_no_terminal_library():
    code = (
        "import sys; sys.argv = ['ouro-edge', 'chat']; from ouro_edge.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'prompt_toolkit', 'pygments', 'markdown_it'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=f"{QUESTION}\n", capture_output=True, text=True, check=True
    )
    assert done.stdout == "Cleo\n[]\n"


def test_sentences_on_standard_error_break_between_words_in_a_terminal(monkeypatch, capsys):
    import sys

    from ouro_edge.cli.options import BUILT_IN, say

    say(BUILT_IN)
    assert capsys.readouterr().err == BUILT_IN + "\n"  # a pipe gets one line
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say(BUILT_IN)
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(lines) == BUILT_IN and len(lines) > 1 and max(map(len, lines)) <= 80
