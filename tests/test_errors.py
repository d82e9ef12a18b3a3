"""Messages: untrusted text on one line, whatever it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouro_edge.errors import one_line


@given(st.text(max_size=50), st.integers(1, 60))
def test_any_text_becomes_one_printable_line(text: str, limit: int) -> None:
    line = one_line(text + "\x1b[31m\x9b2J\r\n\x07\u202e\u2028\ud800\x7f", limit)
    assert len(line) <= limit and line == line.strip()
    assert line.replace("\u200c", "").replace("\u200d", "").isprintable()


@pytest.mark.parametrize(
    ("text", "limit", "line"),
    [
        (" two\n\tlines ", 9, "two lines"),
        ("two\nlines\x1b[0m and more", 12, "two lines[0…"),
        ("çà 日本 👩‍👩‍👧 می‌خواهم", 60, "çà 日本 👩‍👩‍👧 می‌خواهم"),
        (ValueError("a\nb"), 60, "a b"),
        ("", 1, ""),
        ("x" * 2000, 1000, "x" * 999 + "…"),
    ],
)
def test_what_can_be_seen_stays(text: object, limit: int, line: str) -> None:
    assert one_line(text, limit) == line
