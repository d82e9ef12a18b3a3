"""What the user types: keys, pastes, completion, and a private history that survives whatever is in its place."""

from __future__ import annotations

import stat
import sys

import pytest
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from ouro_edge.terminal.input.history import history_file, open_history
from ouro_edge.terminal.input.prompt import Prompt, _Commands


def typed(keys, history=None):
    """What the prompt makes of keys."""
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        prompt = Prompt(history or InMemoryHistory(), input=pipe, output=DummyOutput())
        return list(prompt.lines(lambda: "status"))


LEAVE = "\x04"


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ("hello\r", ["hello"]),
        ("one\x1b\rtwo\r", ["one\ntwo"]),
        ("\x1b[200~pasted\nlines\n\x1b[201~\r", ["pasted\nlines\n"]),
        ("wrong\x03right\r", ["right"]),
        ("\x03\x03\x03still here\r", ["still here"]),
        ("one\rtwo\r", ["one", "two"]),
    ],
)
def test_keys(keys, lines):
    assert typed(keys + LEAVE) == lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/st", ["/stats"]),
        ("/s", ["/set", "/system", "/stats", "/save"]),
        ("/set top", ["top-k", "top-p"]),
        ("/set temp 0", []),
        ("hello /st", []),
        ("hello", []),
        ("/save x\n/st", []),
    ],
)
def test_completion(text, words):
    assert [c.text for c in _Commands().get_completions(Document(text), None)] == words


def test_completion_of_files(tmp_path):
    (tmp_path / "chat.json").touch()
    assert [c.text for c in _Commands().get_completions(Document(f"/load {tmp_path}/ch"), None)] == ["at.json"]


def test_history_is_kept_for_the_next_time_and_for_its_owner_only(tmp_path, monkeypatch):
    file = tmp_path / "new" / "folder" / "history"
    monkeypatch.setenv("OURO_EDGE_HISTORY", str(file))
    history, problem = open_history()
    assert problem == "" and typed("first\r" + LEAVE, history) == ["first"]
    again, _ = open_history()
    assert list(again.load_history_strings()) == ["first"]
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_history_lies_in_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("OURO_EDGE_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_file() == tmp_path / "ouro-edge" / "chat_history"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert history_file() == tmp_path / "local" / "ouro-edge" / "chat_history"


def test_an_empty_name_keeps_no_history(monkeypatch):
    monkeypatch.setenv("OURO_EDGE_HISTORY", "")
    history, problem = open_history()
    assert isinstance(history, InMemoryHistory) and problem == ""


@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_history_that_cannot_be_kept_is_said_once(tmp_path, monkeypatch, kind):
    import os

    file = tmp_path / "history"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes")
        os.mkfifo(file)
    else:
        file.touch()
        file = file / "history"
    monkeypatch.setenv("OURO_EDGE_HISTORY", str(file))
    history, problem = open_history()
    assert isinstance(history, InMemoryHistory)
    assert problem.startswith("the input history will not be stored: ") and "\n" not in problem


def test_a_full_disk_costs_no_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_HISTORY", str(tmp_path / "history"))
    history, _ = open_history()
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    assert typed("hello\r" + LEAVE, history) == ["hello"]
