"""What reaches a template of the messages that clients send, and that no message vanishes in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ouro_edge.errors import TemplateError
from ouro_edge.runtime.text.chat_messages import arguments_object, normal_messages
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.testing import MockModel

# As published with these models; `<|im_end|>` and the like are shortened.
SMOLLM2 = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
TINYLLAMA = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + '</s>' "
    "}}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + '</s>' }}\n{% elif "
    "message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + '</s>' }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message "
    "!= false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ '<s>[INST] ' + "
    "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' </s>' }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (  # prints the call of an assistant, not its content
    "{% for m in messages %}{% if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}"
    "<{{ m.role }}>{{ m.content | trim }}{% elif 'tool_calls' in m %}{% if not m.tool_calls|length == 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "<{{ m.tool_calls[0].function.name }}>{{ m.tool_calls[0].function.arguments | tojson }}"
    "{% else %}<ipython>{{ m.content | tojson }}{% endif %}{% endfor %}"
)
HARMONY = "{% for m in messages %}{% if m.role == 'developer' %}D:{% else %}O:{% endif %}{{ m.content }}{% endfor %}"
HI = {"role": "user", "content": "hi"}
TOLD = {"role": "developer", "content": "Be brief."}


def call(arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    function = {"name": "find", "arguments": arguments}
    calls = [{"id": "1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls, **fields}


RESULT = {"role": "tool", "tool_call_id": "1", "content": "here"}


def render(source: str, *messages: dict[str, Any], **variables: Any) -> str:
    return ChatTemplate(source).render_all(messages, **variables)


def test_null_content_with_calls_is_empty_text() -> None:
    without = call()
    del without["content"]
    for assistant in (call(), without, call(content=""), call(content=[])):
        assert render(SMOLLM2, HI, assistant, RESULT) == "<user>hi\n<assistant>\n<tool>here\n"
        assert render(LLAMA3, HI, assistant, RESULT) == '<user>hi<find>{}<ipython>"here"'
    assert render(SMOLLM2, HI, call(), {**RESULT, "content": None}) == "<user>hi\n<assistant>\n<tool>\n"
    old = {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": ""}}
    assert render(SMOLLM2, HI, old) == "<user>hi\n<assistant>\n"


def test_null_fields_are_absent_for_the_template() -> None:
    answer = {"role": "assistant", "content": "x", "tool_calls": None, "function_call": None, "refusal": None}
    assert render(LLAMA3, HI, answer) == render(LLAMA3, HI, {**answer, "tool_calls": []}) == "<user>hi<assistant>x"
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    assert render(LLAMA3, HI, refused) == "<user>hi<assistant>No."


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (None, {}), ("", {}), (" \n", {}), ("{}", {}), ('{"a": [1]}', {"a": [1]}), ({"a": 1}, {"a": 1}), ("{", "{"),
        ("not JSON", "not JSON"), ("[1]", "[1]"), ("5", "5"), ('{"a": NaN}', '{"a": NaN}'), ("[" * 10**5, "[" * 10**5),
    ],
)  # fmt: skip
def test_arguments_in_the_history(sent: Any, seen: Any) -> None:
    assert arguments_object(sent) == seen
    [message] = normal_messages([call(sent)], "")
    assert message["tool_calls"][0]["function"]["arguments"] == seen
    flat = {"role": "assistant", "content": None, "tool_calls": [{"name": "find", "arguments": sent}]}
    assert normal_messages([flat], "")[0]["tool_calls"][0]["arguments"] == seen


def test_messages_of_the_caller_are_not_changed() -> None:
    message = call("", refusal=None)
    normal_messages([message, TOLD], "")
    assert message == call("", refusal=None) and TOLD["role"] == "developer"


@pytest.mark.parametrize("source", [SMOLLM2, TINYLLAMA, LLAMA2])
def test_developer_means_system(source: str) -> None:
    assert render(source, TOLD, HI) == render(source, {**TOLD, "role": "system"}, HI)
    assert "Be brief." in render(source, TOLD, HI)


def test_developer_is_kept_where_the_template_names_it() -> None:
    assert render(HARMONY, TOLD, HI) == "D:Be brief.O:hi"


@pytest.mark.parametrize(
    ("source", "messages", "number"),
    [
        (TINYLLAMA, [HI, call(), RESULT], 2),
        (TINYLLAMA, [HI, {"role": "function", "name": "f", "content": "hi"}], 1),
        (TINYLLAMA, [HI, {"role": "User", "content": "hi"}], 1),
        (TINYLLAMA, [{"role": "critic", "content": ""}, HI], 0),
        (LLAMA2, [HI, RESULT], 1),
        (LLAMA2, [HI, RESULT, HI], 1),  # roles do not alternate without it
        (LLAMA2, [{"role": "system", "content": "a"}, HI, {"role": "system", "content": "a"}], 2),
        ("{{ messages[0].content }}", [HI, {"role": "user", "content": "hi"}], 1),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", [HI, call(content="hi")], 1),
        ("{{ messages[0].content }}{{ messages[-1].content }}", [HI, TOLD, HI], 1),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", [TOLD, HI], 0),
    ],
)
def test_a_message_that_the_template_drops_is_named(source: str, messages: list[dict[str, Any]], number: int) -> None:
    ChatTemplate(source).render(messages)
    with pytest.raises(TemplateError, match=rf"ignores messages\[{number}\], which has the role '\w+'"):
        render(source, *messages)


def test_shortened_and_moved_messages_are_printed() -> None:
    """The system message within the next turn, an answer without its reasoning, the call of an answer with content."""
    assert "a\n<</SYS>>\n\nhi" in render(LLAMA2, {"role": "system", "content": "a"}, HI)
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert render(source, HI, {"role": "assistant", "content": "<think>so</think>yes"}) == "hiyes"
    assert render(source, HI, {"role": "assistant", "content": "<think>so</think>"}) == "hi"
    assert render(LLAMA3, HI, call('{"a": 1}', content="I look.")) == '<user>hi<find>{"a": 1}'
    source = "{% for m in messages %}{% if '|' in m.content %}{{ m.content }}{% endif %}{% endfor %}"
    assert render(source, {"role": "user", "content": "a|b"}) == "a|b"


def test_a_template_may_forget_the_oldest_turns() -> None:
    assert render("{{ messages[-1].content }}", TOLD, HI, call(content="x"), {**HI, "content": "and?"}) == "and?"


def test_model_chat_reads_messages_alike() -> None:
    model = MockModel("Yes.")
    model.text = replace(model.text, template=ChatTemplate(TINYLLAMA))
    *_, done = model.chat([TOLD, HI, call()])
    assert done.text == "Yes."
    with pytest.raises(TemplateError, match=r"ignores messages\[3\]"):
        model.chat([TOLD, HI, call(), RESULT])
