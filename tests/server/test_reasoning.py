"""What a model thinks before it answers comes apart from the answer, however it is cut into tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import openai
import pytest

from ouro_edge.runtime.events import Token
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.runtime.text.reasoning import KNOWN
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.openai.reasoning import ReasoningText
from ouro_edge.server.openai.tools import Tools, read_tools
from ouro_edge.testing import MockModel

QUESTION = [{"role": "user", "content": "why?"}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CASES = [
    ("<think>\nSo <b>\n</think>\n\nBecause <think>.", "So <b>\n", "Because <think>."),
    ("\n<think></think>\n\nBecause.", "", "Because."),
    ("<think>never done </thin", "never done </thin", ""),
    (" Because <think>", "", " Because <think>"),
    ("<thin", "", "<thin"),
    (" \n", "", " \n"),
]


@pytest.fixture
def asked(serve):
    """asked(model, **fields) is OpenAI's client's answer of a server with this model."""

    def ask(model, **fields):
        with openai.OpenAI(base_url=f"{serve(model).url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(**{"model": "any", "messages": QUESTION, **fields})
            return list(answer) if fields.get("stream") else answer

    return ask


@pytest.mark.parametrize(("said", "thought", "answer"), CASES)
def test_an_answer(asked, said, thought, answer):
    message = asked(MockModel(said)).choices[0].message
    assert (getattr(message, "reasoning_content", ""), message.content) == (thought, answer)


@pytest.mark.parametrize(("said", "thought", "answer"), CASES)
def test_a_stream(asked, said, thought, answer):
    deltas = [chunk.choices[0].delta for chunk in asked(MockModel(said), stream=True)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == thought
    assert "".join(delta.content or "" for delta in deltas) == answer


def test_every_choice_begins_anew(asked):
    choices = asked(MockModel("<think>so</think>Because."), n=2).choices
    assert [(c.message.reasoning_content, c.message.content) for c in choices] == [("so", "Because.")] * 2


def test_a_template_that_opens_the_thought(asked):
    model = MockModel("so</think>Because.")
    model.text = replace(model.text, template=ChatTemplate(model.chat_template + "{{ '<think>\n' }}"))
    message = asked(model).choices[0].message
    assert (message.reasoning_content, message.content) == ("so", "Because.")


def test_what_follows_a_schema_is_no_thought(asked, nano, monkeypatch):
    """The schema leaves no room for the tag that would end a thought which the template has opened."""
    text = replace(nano.text, template=ChatTemplate(nano.chat_template + "{{ '<think>' }}"))
    monkeypatch.setattr(nano, "text", text)
    message = asked(nano, response_format={"type": "json_object"}, max_tokens=20).choices[0].message
    assert message.content.startswith("{") and not hasattr(message, "reasoning_content")


def test_calls_in_a_thought_are_not_made(nano):
    call = '<tool_call>{"name": "find", "arguments": {}}</tool_call>'
    text = f"<think>I may {call}</think>\n\nI look. {call}"
    reader = ReasoningText(nano.tokenizer, KNOWN[0], read_tools(Fields({"tools": [TOOL]}, "")).text())
    deltas = [reader.push(Token(100, character, 0.0, 1, (1.0,))) for character in text] + [reader.finish()]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == f"I may {call}"
    assert "".join(delta.get("content", "") for delta in deltas) == "I look. "
    assert len([c for delta in deltas for c in delta.get("tool_calls", ())]) == 1


def test_tags_that_are_special_tokens():
    tags = {7: "<think>", 8: "</think>"}
    tokenizer = SimpleNamespace(is_special=tags.__contains__, piece=tags.get)
    reader = ReasoningText(tokenizer, KNOWN[0], Tools().text())
    parts = [(7, ""), (1, "so"), (8, ""), (1, "Because")]
    assert [reader.push(Token(i, text, 0.0, 1, (1.0,))) for i, text in parts] == [
        {}, {"reasoning_content": "so"}, {}, {"content": "Because"}
    ]  # fmt: skip
