"""Conversations in files: whole or not at all, and refused in one line when they are anything else."""

from __future__ import annotations

import json
import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ouro_edge.errors import RequestError
from ouro_edge.terminal.saved import SavedChat, read_chat, write_chat

CHAT = SavedChat("nano", "be kind", [{"role": "user", "content": "a\x1b"}, {"role": "assistant", "content": "日本"}])


@given(st.lists(st.tuples(st.text(), st.text()), max_size=3), st.none() | st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path, turns, system):
    messages = [{"role": r, "content": c} for t in turns for r, c in zip(("user", "assistant"), t, strict=True)]
    write_chat(tmp_path / "chat.json", SavedChat("m", system, messages))
    assert read_chat(tmp_path / "chat.json") == SavedChat("m", system, messages)


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
def test_a_conversation_is_private(tmp_path):
    write_chat(tmp_path / "chat.json", CHAT)
    assert (tmp_path / "chat.json").stat().st_mode & 0o077 == 0


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "chat.json"
    write_chat(path, CHAT)
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RequestError, match="No space left"):
        write_chat(path, SavedChat("other", None, []))
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"] and read_chat(path) == CHAT
    with pytest.raises(RequestError, match="cannot be written"):
        write_chat(tmp_path / "nowhere" / "chat.json", CHAT)


def test_an_answer_that_is_a_call_has_no_content(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    (tmp_path / "chat.json").write_text(json.dumps({**GOOD, "messages": [TURN[0], answer]}))
    assert read_chat(tmp_path / "chat.json").messages == [TURN[0], {"role": "assistant", "content": ""}]


GOOD = {"format": "ouro-edge chat", "version": 1, "model": "m", "system": None, "messages": []}
TURN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("not json", "JSON"),
        ("[]", "expected a JSON object"),
        ({**GOOD, "version": 2}, "version 1"),
        ({**GOOD, "format": "x"}, "is not a conversation"),
        ({**GOOD, "system": 5}, "system message 5"),
        ({**GOOD, "messages": "x"}, "no list of messages"),
        ({**GOOD, "messages": TURN[:1]}, "ends with a question"),
        ({**GOOD, "messages": TURN[::-1]}, "message 1 is not of the user"),
        ({**GOOD, "messages": [TURN[0], {"role": "assistant", "content": None}]}, "message 2"),
        ({**GOOD, "messages": [TURN[0], "x"]}, "message 2"),
        ({**GOOD, "messages": [{"role": "system", "content": "x"}, TURN[1]]}, "message 1"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path, data, says):
    path = tmp_path / "chat.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(RequestError, match=says) as problem:
        read_chat(path)
    assert "\n" not in str(problem.value)


def test_no_file_and_no_plain_file(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RequestError):
            read_chat(path)
