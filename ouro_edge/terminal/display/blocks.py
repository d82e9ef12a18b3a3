"""Where a growing Markdown text has finished blocks: those that no later text can change. Knows markdown-it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt


class BlockStream:
    """Running state of one text: `push` pieces and get finished blocks; `tail` is what is still open."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = ""

    def push(self, text: str) -> list[str]:
        """The top-level blocks that are finished now, in order.

        Only whole lines count, since half of one may turn out to belong to the block before it ("#" and "#1").
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
    """CommonMark with tables and strike-through. HTML stays text: rich would swallow it."""
    from markdown_it import MarkdownIt

    # Definitions of links stay text: they would show nothing of what was written.
    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table").disable("reference")
    return parser.disable("text_join")  # so that escaped characters can be told from plain ones


@cache
def _block_parser() -> MarkdownIt:
    """The same blocks, their inline text unread: that is most of the work."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("reference")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser
