"""Finds the finished blocks of a growing Markdown text: those that later text cannot change. Uses markdown-it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt


class BlockStream:
    """Running state of one text: `push` returns finished blocks; `tail` is the unfinished rest."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = ""

    def push(self, text: str) -> list[str]:
        """The top-level blocks that are finished now, in order.

        Only complete lines count, since a partial line may belong to the block before it ("#" and "#1").
        """
        self.tail += text
        if "\n" not in text:
            return []
        lines = self.tail[: self.tail.rindex("\n")].split("\n")
        tokens = _block_parser().parse("\n".join(lines))
        starts = [token.map[0] for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]
        if len(starts) < 2:
            return []
        blocks = ["\n".join(lines[a:b]) for a, b in pairwise(starts)]
        finished = sum(len(line) + 1 for line in lines[: starts[-1]])
        self.tail = self.tail[finished:]
        return blocks


@cache
def markdown_parser() -> MarkdownIt:
    """CommonMark with tables and strike-through. HTML stays text, because rich would drop it."""
    from markdown_it import MarkdownIt

    # Link definitions stay text, because they would not be visible otherwise.
    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table").disable("reference")
    return parser.disable("text_join")  # so that escaped characters remain distinguishable


@cache
def _block_parser() -> MarkdownIt:
    """A parser of blocks only: parsing inline text is most of the work."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("reference")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser
