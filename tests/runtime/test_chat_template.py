"""Chat templates: what they print, what they may not do, and how they fail."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from toy_text import CHATML

from ouro_edge.errors import RequestError, TemplateError
from ouro_edge.runtime.text import chat_template as template
from ouro_edge.runtime.text.chat_template import ChatTemplate

HI = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Any = HI, **variables: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **variables)


def test_chatml() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *HI, {"role": "assistant", "content": ""}]
    body = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    )
    assert render(CHATML, chat, add_generation_prompt=False) == body
    assert render(CHATML, chat) == body + "<|im_start|>assistant\n"


def test_smollm2s_own_template() -> None:
    source = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{"
        "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert render(source) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_variables_and_tokens_reach_the_template() -> None:
    source = "{{ bos_token }}{{ enable_thinking }}{{ tools is none }}{{ documents is none }}{{ eos_token }}"
    assert render(source, enable_thinking=False) == "<s>FalseTrueTrue</s>"
    assert render("{{ tools[0].name }}", tools=[{"name": "clock"}]) == "clock"
    assert render("{{ bos_token }}", bos_token="<other>") == "<other>"


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    assert render("  {% if true %}\na\n  {% endif %}\nb\n") == "a\nb"


def test_loop_controls_and_loop_variables() -> None:
    body = "{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
    source = "{% for i in range(9) %}" + body + "{% endfor %}"
    assert render(source) == "023"
    assert render("{% for i in [7, 8] %}{{ loop.length }}{{ loop.last }}{{ i }} {% endfor %}") == "2False7 2True8 "
    assert render("{% for i in [1, 2, 3] if i != 2 %}{{ i }}{% else %}none{% endfor %}") == "13"
    assert (
        render("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in nothing %}x{% endfor %}")
        == "a1"
    )


def test_recursive_loops_and_macros_work() -> None:
    body = "{% if i is number %}{{ i }}{% else %}({{ loop(i) }}){% endif %}"
    assert render("{% for i in [1, [2, [3]]] recursive %}" + body + "{% endfor %}") == "1(2(3))"
    assert render("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m(2) }}") == "<1><2>"


def test_tojson_is_hugging_faces() -> None:
    assert render("{{ x|tojson }}", x={"b": "<é&'>", "a": [1]}) == """{"b": "<é&'>", "a": [1]}"""
    assert render("{{ x|tojson(indent=2) }}", x={"a": 1}) == '{\n  "a": 1\n}'


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(time.localtime().tm_year + d) for d in (-1, 0, 1)}


def test_generation_blocks_are_printed() -> None:
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render(source) == "21"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


def test_other_keys_of_a_message_pass() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert render("{{ messages[0].tool_calls[0].name }}{{ messages[0].content }}", [message]) == "f"
    del message["content"]
    assert render("{{ messages[0].content == '' }}", [message]) == "True"


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ("hi", "str"),
        (HI[0], "dict"),
        (None, "NoneType"),
        (["hi"], r"messages\[0\] is str"),
        ([*HI, {"content": "x"}], r"messages\[1\] has the role None"),
        ([{"role": 3, "content": "x"}], "role 3"),
        ([{"role": "user", "content": 5}], "content is int"),
        ([*HI, {"role": "user"}], r"messages\[1\] has no content"),
        ([{"role": "assistant", "content": None}], r"messages\[0\] has no content"),
        ([{"role": "assistant", "tool_calls": []}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": b"x"}], "content is bytes"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is 'image_url'"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] is 'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\] is 'text'"),
    ],
)
def test_bad_messages_are_named(messages: Any, found: str) -> None:
    with pytest.raises(RequestError, match=found) as caught:
        render(CHATML, messages)
    assert not isinstance(caught.value, TemplateError)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{% for x in y %}", "{{ 'a", "{% nonsense %}", "{{ x|nonsense }}", "{% break %}", "{{" + "(" * 5000],
    ids=range(7),
)
def test_sources_that_do_not_compile(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be compiled") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages[0].update(role='system') }}", "update"),
        ("{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{{ lipsum(n=9) }}", "lipsum"),
        ("{% include 'x' %}", "loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ '%s'|format(x)|tojson(indent=x) }}{{ messages|tojson(nonsense=1) }}", "nonsense"),
    ],
)
def test_templates_that_fail_say_why_on_one_line(source: str, words: str) -> None:
    compiled = ChatTemplate(source)
    with pytest.raises(TemplateError, match=words) as caught:
        compiled.render(HI)
    assert "\n" not in str(caught.value)
    assert "chat template" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% set r = range(9999)|list %}{% for i in r %}{% for j in r if false %}{% endfor %}{% endfor %}",
        "{{ range(9999)|sum }}{{ range(9999)|sum }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set r = range(999) %}{% for i in r recursive %}{{ loop(r) if loop.depth < 3 }}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 10 ** (10 ** 10) > 5 }}",
    ],
)
def test_endless_work_is_cut_short(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_STEPS", 15_000)  # for the sake of time
    with pytest.raises(TemplateError, match=r"steps|too large|too big"):
        render(source)


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_TEXT_CHARACTERS", 1000)
    source = "{% for i in range(n) %}ten chars.{% endfor %}"
    assert len(render(source, n=100)) == 1000
    with pytest.raises(TemplateError, match="exceeds 1000 characters"):
        render(source, n=101)


def test_budget_is_per_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_STEPS", 100)
    compiled = ChatTemplate("{% for m in messages %}.{% endfor %}")
    for _ in range(5):
        assert compiled.render(HI * 90) == "." * 90
    with pytest.raises(TemplateError, match="exceeded 100 steps"):
        compiled.render(HI * 101)
    assert compiled.render(HI) == "."  # also after a failure


def test_ordinary_arithmetic_is_left_alone() -> None:
    assert render("{{ 2 ** 10 }} {{ 3 * 4 }} {{ '-' * 5 }} {{ 2 ** 0.5 > 1 }} {{ 1.5 * 2 }} {{ 'x' * -1 }}") == (
        "1024 12 ----- True 3.0 "
    )


def test_messages_are_not_changed_and_threads_may_share_a_template() -> None:
    compiled = ChatTemplate(
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}"
    )
    wrong: list[str] = []

    def work(letter: str) -> None:
        chat = [{"role": "user", "content": [{"type": "text", "text": letter}]}] * 50
        for _ in range(20):
            if compiled.render(chat) != letter * 50:
                wrong.append(letter)
        if chat[0]["content"] != [{"type": "text", "text": letter}]:
            wrong.append(f"{letter} changed")

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
