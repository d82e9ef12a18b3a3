"""What a user sees, on a terminal in memory."""

from __future__ import annotations

import pytest
from rich.text import Text

from ouro_edge.terminal.display.markdown import AnswerMarkdown, Trimmed
from ouro_edge.terminal.display.screen import Screen

GUIDE = """# Sorting

Use `sorted(xs)` for a **new** list; see [the docs](https://docs.python.org/3/).
Second line, <b>html</b>, a\\*star, \\(x^2\\), ![picture](http://x/y.png) and a tail.

1. First, a line that is long enough to be wrapped in every window that we test here, really
2. Then:
   - by key

```python
def top(xs):
    return sorted(xs)  # a comment
```

| name | time |
| --- | ---: |
| Timsort | O(n log n) |

> quoted

---

日本語のテキスト
"""


def chunks(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)]


def show(memory, events, *, width=80, height=24, show_depth=False, **settings):
    seen = memory(width, height, **settings)
    Screen(seen.console, 4, lambda status: iter(())).answer(events, show_depth=show_depth)
    return seen


@pytest.fixture
def eager(monkeypatch):
    """Draw at every token."""
    monkeypatch.setattr("ouro_edge.terminal.display.live.MIN_REDRAW_SECONDS", 0.0)
    monkeypatch.setattr("ouro_edge.terminal.display.live.MAX_DRAWING_SHARE", 1e9)


def body(seen):
    """The answer without what is said about it."""
    return seen.lines[: next(i for i, line in enumerate(seen.lines) if line.startswith("["))]


@pytest.mark.parametrize("width", [20, 80])
@pytest.mark.parametrize("height", [6, 24])
@pytest.mark.parametrize("size", [1, 7])
def test_streamed_markdown_ends_as_if_it_had_been_printed_block_by_block(memory, pieces, eager, width, height, size):
    seen = show(memory, pieces(chunks(GUIDE, size)), width=width, height=height)
    whole = show(memory, pieces([GUIDE]), width=width, height=200)
    assert body(seen) == body(whole)


def test_markdown_is_drawn_and_nothing_is_lost(memory, pieces):
    text = "\n".join(body(show(memory, pieces([GUIDE]))))
    for part in ("Sorting", "sorted(xs) for a new list", "(https://docs.python.org/3/)", "<b>html</b>", "a*star",
                 r"\(x^2\)", "[image: picture] (http://x/y.png) and a tail.", "  def top(xs):", "Timsort", "▌ quoted",
                 "日本語のテキスト"):  # fmt: skip
        assert part in " ".join(text.split("\n")), part
    assert "**" not in text and "```" not in text and "#" not in text.replace("# a comment", "")
    assert "list; see the docs" in text and "Second line" in [line[:11] for line in text.split("\n")]


@pytest.mark.parametrize("text", ["[Answer]: 42", "A [1].\n\nB\n\n[1]: https://x\n", "[a]: b\n\nwords [a]\n\nmore\n"])
def test_definitions_of_links_are_shown(memory, pieces, text):
    drawn = "".join("".join(show(memory, pieces(chunks(text))).lines).split())
    assert drawn.startswith("".join(text.split()))


def test_no_blank_lines_pile_up(memory, pieces):
    lines = body(show(memory, pieces([GUIDE])))
    assert lines[0] == "Sorting" and "\n\n\n" not in "\n".join(lines).rstrip()


@pytest.mark.parametrize("width", [1, 2, 5, 10, 40])
def test_narrow_windows_hold_every_line(memory, pieces, width):
    assert len(show(memory, pieces(chunks(GUIDE)), width=width).lines) > 10


HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[H\x9b31m\x1b]8;;http://evil\x1b\\click\r\x08\x08 [a](http://evil/\x1b[0m) "
    + "x" * 5000
)


@pytest.mark.parametrize("show_depth", [False, True])
def test_hostile_text_cannot_steer_the_terminal(memory, pieces, show_depth):
    seen = show(memory, pieces(chunks(HOSTILE), thought=[HOSTILE]), show_depth=show_depth)
    for sequence in ("\x1b]", "\x1b[2J", "\x1b[H", "\x9b", "\x07", "\x08"):
        assert sequence not in seen.raw, sequence
    assert "".join(seen.lines).count("x") >= 5000


@pytest.mark.parametrize("text", ["```", "**", "[a](", "| a |\n|", "> " * 300 + "deep", "- " * 200 + "deep", "`" * 999])
def test_half_markdown_is_shown_somehow(memory, pieces, text):
    seen = show(memory, pieces(chunks(text)), width=30)
    assert any(line.startswith("[") for line in seen.lines)
    assert "deep" not in text or "deep" in "".join(seen.lines).replace(" ", "")


def test_what_rich_cannot_draw_is_shown_as_text(memory):
    class Broken:
        def __rich_console__(self, console, options):
            raise RuntimeError

    seen = memory()
    seen.console.print(Trimmed(Broken(), "as it was"), end="")
    assert seen.lines == ["as it was"]


def test_lines_carry_no_trailing_spaces(memory):
    seen = memory()
    seen.console.print(Trimmed(AnswerMarkdown(GUIDE)), end="")
    assert not any(line.endswith(" ") for line in seen.raw.replace("\x1b[0m", "").split("\n"))


def test_a_thought_is_shown_while_it_lasts_and_folded_afterwards(memory, pieces, eager):
    seen = show(memory, pieces(["Cleo"], thought=["Ada ", "likes ", "Ben."]))
    assert "Ada" in seen.raw
    assert seen.lines[:3] == ["reasoning: 3 tokens, /think shows it", "", "Cleo"]
    seen = show(memory, pieces([], thought=["hm "] * 90), width=40, height=10)
    assert seen.lines[0].startswith("reasoning: 90 tokens (unfinished")


def test_an_answer_of_nothing_is_said(memory, pieces):
    assert show(memory, pieces([])).lines[0] == "(no answer)"


def test_what_was_said_stays_when_something_breaks(memory, pieces):
    def events():
        yield from list(pieces(["half an ", "answer"]))[:-1]
        raise ValueError("a bug")

    seen = memory()
    with pytest.raises(ValueError, match="a bug"):
        Screen(seen.console, 4, lambda status: iter(())).answer(events(), show_depth=False)
    assert seen.lines == ["half an answer"]
    assert seen.raw.endswith("\x1b[?25h") or "\x1b[?25h" in seen.raw.rsplit("\x1b[?25l", 1)[1]  # the cursor is back


def test_depth_tints_text_as_it_was_written(memory, pieces):
    seen = show(memory, pieces(["# a", "\n", "b ", "c\n\n", "d"]), show_depth=True)
    assert body(seen)[:4] == ["# a", "b c", "", "d"]
    assert "tokens by loops  1: 1  2: 2  3: 1  4: 1" in seen.lines
    colours = {seen.screen.buffer[y][x].fg for y, x in ((0, 0), (1, 0), (1, 2))}
    assert len(colours) == 3 and "default" not in colours


def test_depth_without_colour_is_told_by_weight(memory, pieces):
    seen = show(memory, pieces(["one", "two", "three", "four"]), show_depth=True, no_color=True)
    assert "\x1b[38" not in seen.raw and "\x1b[2m" in seen.raw and "\x1b[1;4m" in seen.raw


def test_no_color_keeps_markdown_free_of_colour(memory, pieces):
    seen = show(memory, pieces([GUIDE]), no_color=True)
    assert not any(f"\x1b[{code}" in seen.raw for code in ("3", "4m4", "9", "10")) and "Timsort" in seen.raw


def test_errors_and_notices_are_cleaned(memory):
    seen = memory(40)
    screen = Screen(seen.console, 4, lambda status: iter(()))
    screen.error("bad\x1b[2J\nthing")
    screen.notice("file\x07name")
    screen.table([("a\x1b[1m", "b" * 60)])
    assert "\x1b[2J" not in seen.raw and seen.lines[0] == "Error: bad[2J thing" and "filename" in seen.lines[1]
    assert isinstance(seen.lines[2], str) and Text(seen.lines[2]).cell_len <= 40
