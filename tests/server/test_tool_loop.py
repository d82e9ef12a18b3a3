"""The steps of an agent with OpenAI's own client: a call, its result, the next answer, on templates of all kinds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.testing import MockModel

ROLES = (  # names its roles, as TinyLlama and Zephyr do
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}{% elif m['role'] == 'system' %}"
    "{{ '<|system|>' + m['content'] }}{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] }}"
    "{% endif %}{% endfor %}"
)
TOOL: Any = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
QUESTION: Any = {"role": "user", "content": "Where is Ada?"}


@pytest.fixture
def client_of(serve):
    """client_of(model) is OpenAI's client of a server with this model."""
    return lambda model: openai.OpenAI(base_url=f"{serve(model).url}/v1", api_key="none", max_retries=0)


def with_template(model, source):
    model.text = replace(model.text, template=ChatTemplate(source))
    return model


@pytest.mark.parametrize("dump", ["model_dump", "to_dict", "message"])
def test_the_second_step(client_of, nano, dump):
    """The client sends the assistant's message back as an object, with every null, or with the nulls left out."""
    client = client_of(nano)
    first = client.chat.completions.create(model="m", messages=[QUESTION], tools=[TOOL], tool_choice="required")
    message = first.choices[0].message
    assert message.content is None and message.tool_calls
    sent: Any = message if dump == "message" else getattr(message, dump)()
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "here"}
    for arguments in (message.tool_calls[0].function.arguments, "", "  ", "no JSON"):
        message.tool_calls[0].function.arguments = arguments
        sent = message if dump == "message" else getattr(message, dump)()
        second = client.chat.completions.create(model="m", messages=[QUESTION, sent, result], max_tokens=3)
        assert second.choices[0].message.role == "assistant"


def test_developer_is_system_for_the_model(client_of):
    client = client_of(with_template(MockModel("Yes."), ROLES))
    counts = [
        client.chat.completions.create(model="m", messages=[{"role": role, "content": "Be brief."}, QUESTION]).usage
        for role in ("developer", "system")
    ]
    assert counts[0].prompt_tokens == counts[1].prompt_tokens > len("<|user|>Where is Ada?") / 2


def test_a_role_that_the_template_drops_is_an_error(client_of):
    client = client_of(with_template(MockModel("Yes."), ROLES))
    with pytest.raises(openai.BadRequestError, match=r"ignores messages\[1\], which has the role 'tool'"):
        messages: Any = [QUESTION, {"role": "tool", "tool_call_id": "1", "content": "Where"}]
        client.chat.completions.create(model="m", messages=messages)


def test_a_free_call_and_the_answer_to_its_result(client_of):
    """The arguments contain the closing tag; the call comes in a stream and goes back with its result."""
    said = '<tool_call>{"name": "find", "parameters": {"who": "</tool_call>"}}\nwhat follows'
    client = client_of(with_template(MockModel(said), "{{ tools }}" + ROLES + "{{ messages[-1].content }}"))
    chunks = client.chat.completions.create(model="m", messages=[QUESTION], tools=[TOOL], stream=True)
    deltas = [chunk.choices[0] for chunk in chunks]
    [call] = [call for choice in deltas for call in choice.delta.tool_calls or ()]
    assert call.function.name == "find" and json.loads(call.function.arguments) == {"who": "</tool_call>"}
    assert "".join(choice.delta.content or "" for choice in deltas) == "what follows"
    assert deltas[-1].finish_reason == "tool_calls"
    assistant: Any = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "here"}
    again = client.chat.completions.create(model="m", messages=[QUESTION, assistant, result], tools=[TOOL])
    assert again.choices[0].message.tool_calls[0].function.name == "find"
