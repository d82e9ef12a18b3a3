"""The plugin in the real `llm`, run by a Python that has both."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

pytestmark = pytest.mark.llm
QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


@pytest.fixture
def llm(tmp_path):
    python = os.environ.get("OURO_EDGE_LLM_PYTHON")
    if not python:
        pytest.skip("OURO_EDGE_LLM_PYTHON names no Python with llm and ouro-edge")

    def run(*arguments, code=0):
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        result = subprocess.run([python, "-m", "llm", *arguments], env=environment, capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        return result.stderr if code else result.stdout

    return run


def test_llm_lists_the_model_and_its_options(llm):
    shown = llm("models", "--options", "-m", "ouro-edge")
    assert "exit_threshold: float" in shown and "exit: str" in shown


def test_a_conversation_is_answered_and_logged_with_its_depth(llm):
    assert llm("-m", "ouro-edge", QUESTION).strip() == "Cleo"
    assert llm("-m", "ouro-edge", "--no-stream", "-o", "loops", "4", QUESTION).strip() == "Cleo"
    assert llm("-c", "Ada likes Dan. Ada likes who?").strip() == "Dan"
    llm("-m", "ouro-edge", "-o", "exit", "confidence:1,ceiling=3", QUESTION)
    logs = json.loads(llm("logs", "-n", "4", "--json"))
    assert [log["response"] for log in logs[:3]] == ["Cleo", "Cleo", "Dan"]
    assert len({log["conversation_id"] for log in logs}) == 3
    assert [json.loads(logs[i]["token_details"])["mean_depth"] for i in (1, 3)] == [4.0, 3.0]


def test_a_chat_keeps_the_state_of_its_turns():
    python = os.environ.get("OURO_EDGE_LLM_PYTHON") or pytest.skip("OURO_EDGE_LLM_PYTHON is not set")
    code = (
        "import llm\n"
        "model = llm.get_model('ouro-edge')\n"
        "first, second = model.conversation(), model.conversation()\n"
        "for talk, ask in ((first, 'Ada'), (first, 'Ben'), (second, 'Cleo')):\n"
        "    talk.prompt('Ada likes Ben. Ben likes Cleo. Cleo likes Ada. ' + ask + ' likes who?').text()\n"
        "    print(list(model._kept) == [(None, talk.id)], len(model._kept))\n"
    )
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "True 1\n" * 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "model", "/nonsense"], "'/nonsense' is neither a directory"),
        (["-o", "loops", "9"], "trained for 1 to 4 loops"),
        (["-o", "exit_threshold", "7"], "expected a number from 0 to 1"),
        (["-o", "exit_threshold", "0.7", "-o", "loops", "3"], "exclude each other"),
        (["-o", "exit", "gate:0.7,roof=3"], "floor, ceiling or budget"),
        (["-o", "loop", "2"], "loop"),
    ],
)
def test_mistakes_are_one_line(llm, arguments, says):
    said = llm("-m", "ouro-edge", *arguments, "hi", code=1)
    assert says in said and "Traceback" not in said


def test_an_attachment_is_refused_in_every_form():
    python = os.environ.get("OURO_EDGE_LLM_PYTHON") or pytest.skip("OURO_EDGE_LLM_PYTHON is not set")
    code = (
        "import llm, ouro_edge\n"
        "from llm.parts import AttachmentPart, TextPart\n"
        "model = llm.get_model('ouro-edge')\n"
        "picture = llm.Attachment(type='image/png', content=b'x')\n"
        "message = llm.Message(role='user', parts=[TextPart(text='hello'), AttachmentPart(attachment=picture)])\n"
        "for given in ({'attachments': [picture]}, {'messages': [message]}):\n"
        "    try:\n"
        "        print('answered', model.prompt('hello', **given).text())\n"
        "    except ValueError as problem:\n"
        "        print('attachment' in str(problem))\n"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\nTrue\n", done.stderr
