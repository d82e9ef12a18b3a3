"""Text on its way to the screen: cleaned, told apart into thought and answer, cut into finished blocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouro_edge.runtime.text.reasoning import KNOWN, ReasoningParser, ReasoningTags, tags_of
from ouro_edge.terminal.display.blocks import BlockStream
from ouro_edge.terminal.display.sanitize import clean

THINK = ReasoningTags("<think>", "</think>")


def cut(text, places):
    """The text in parts, cut at the places."""
    edges = [0, *sorted(p % (len(text) + 1) for p in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text):
    left = clean(text + "\x1b[31m\x9b2J\r\x07\u202e\ud800\x7f")
    assert not any((c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in left)
    assert "\u202e" not in left


def test_what_can_be_seen_stays():
    text = "a\tb\nçà 日本 👩‍👩‍👧 [31m\u200d"
    assert clean(text) == text


def split(parts, **start):
    splitter = ReasoningParser(THINK, **start)
    found = [piece for part in parts for piece in splitter.push(part)] + splitter.flush()
    return tuple("".join(text for text, is_thought in found if is_thought is kind) for kind in (True, False))


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>why</think>because", "why", "because"),
        ("\n<think>\nwhy\n</think>\n\nbecause", "\nwhy\n", "\n\n\nbecause"),
        ("no thought, <think> is a tag", "", "no thought, <think> is a tag"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("<think>never done", "never done", ""),
        ("<think>a <b> </thin </think>", "a <b> </thin ", ""),
        ("a < b <thi", "", "a < b <thi"),
        ("<thin", "", "<thin"),
    ],
)
@given(places=st.lists(st.integers(0, 60)))
def test_thoughts_are_found_however_the_text_is_cut(text, thought, answer, places):
    assert split(cut(text, places)) == (thought, answer)


def test_a_thought_that_the_prompt_has_opened():
    assert split(["why", "</th", "ink>because"], in_reasoning=True) == ("why", "because")


def test_only_what_may_be_a_tag_is_held_back():
    splitter = ReasoningParser(THINK)
    assert splitter.push("<") == [] and splitter.push("b") == [("<b", False)]
    assert splitter.push(" <thi") == [(" <thi", False)]  # it has begun to answer


def test_tags_come_from_the_template_then_from_the_vocabulary():
    assert tags_of("{{ '[THINK]' }}", lambda text: False) == ReasoningTags("[THINK]", "[/THINK]")
    assert tags_of("", {"<seed:think>"}.__contains__) == ReasoningTags("<seed:think>", "</seed:think>")
    assert tags_of("", lambda text: False) == KNOWN[0] == THINK


MARKDOWN = st.lists(
    st.sampled_from(
        ["# head", "text", "more text", "", "- item", "  - inner", "1. one", "```", "    code", "> quote", "---", "===",
         "| a | b |", "| - | - |", "#", "1", "<b>", "  ", "\tx"]
    ), max_size=14,
).map("\n".join)  # fmt: skip


@given(MARKDOWN, st.lists(st.integers(0, 200)))
def test_finished_blocks_are_those_of_the_whole_text(text, places):
    from markdown_it import MarkdownIt

    stream = BlockStream()
    blocks = [block for part in cut(text, places) for block in stream.push(part)]
    if stream.tail.strip():
        blocks.append(stream.tail)
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    alone = [(t.type, t.content) for block in blocks for t in parser.parse(block)]
    assert alone == [(t.type, t.content) for t in parser.parse(text)]


def test_a_block_is_finished_when_the_next_one_has_begun():
    stream = BlockStream()
    assert stream.push("one\nparagraph\n\n") == []
    assert stream.push("#") == [] and stream.push("1 is no heading\n") == ["one\nparagraph\n"]
    assert stream.push("\n```\n# no heading\n\nstill code\n") == ["#1 is no heading\n"]
    assert stream.tail.startswith("```")
