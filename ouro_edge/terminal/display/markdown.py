"""Markdown for a terminal: rich's, with quieter headings and code, nothing lost of what was written. Knows rich.

Lines carry no trailing spaces, so that copied text is clean, and a link shows where it leads as text: an escape
sequence with a stranger's address is never printed.
"""

from __future__ import annotations

from typing import ClassVar

from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, HorizontalRule, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from ouro_edge.terminal.display.blocks import markdown_parser

THEME = Theme({"markdown.code": "bold cyan"})  # rich's own paints a black ground, which a light terminal shows
_MATH = ("\\(", "\\)", "\\[", "\\]")  # LaTeX, which Markdown would take for escaped brackets
_DEEPEST = 12  # six lists in one another


class _PlainHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text.plain, style="bold underline" if self.tag == "h1" else "bold")


class _BareCode(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(
            code, self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 2), background_color="default"
        )


class _ThinRule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="dim", characters="-" if options.ascii_only else "─")


class AnswerMarkdown(Markdown):
    """One block, or several, of a model's answer; line breaks stay where the model made them."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _BareCode,
        "code_block": _BareCode,
        "hr": _ThinRule,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = markdown_parser().parse(text)
        for token in self.parsed:
            for child in token.children or ():
                _keep_as_written(child)


def drawn(text: str) -> RenderableType:
    """What to draw for a block. Text that is nested so deeply that the parser would drop it is shown as it is."""
    markdown = AnswerMarkdown(text)
    too_deep = any(token.level > _DEEPEST for token in markdown.parsed)
    return Text(text) if too_deep else markdown


def _keep_as_written(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
    elif token.type == "text_special":
        token.type = "text"
        if token.markup in _MATH:
            token.content = token.markup
    elif token.type == "image":  # rich would draw a landscape beside the text and crop what follows
        token.content = f"[image: {token.content}] ({token.attrs.get('src', '')})"
        token.type, token.tag, token.children = "text", "", None


class Trimmed:
    """A renderable without trailing spaces and without empty lines around it; plain text where rich cannot draw it."""

    def __init__(self, content: RenderableType, fallback: str = "", *, last: int | None = None) -> None:
        self.content, self.fallback, self.last = content, fallback, last  # `last`: only so many lines, from the end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in _trimmed(self._lines(console, options.update(height=None)))[-(self.last or 0) :]:
            yield from line
            yield Segment.line()

    def _lines(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        try:
            return console.render_lines(self.content, options, pad=False)
        except Exception:  # strange Markdown in a narrow window finds holes in any renderer; the text must be seen
            if not self.fallback:
                raise
            return console.render_lines(Text(self.fallback), options, pad=False)


def _trimmed(lines: list[list[Segment]]) -> list[list[Segment]]:
    kept = [_without_trailing_space(line) for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    while kept and not kept[0]:
        kept.pop(0)
    return kept


def _without_trailing_space(line: list[Segment]) -> list[Segment]:
    line = list(line)
    while line:
        text, style, control = line.pop()
        if control or (text := text.rstrip()):
            return [*line, Segment(text, style, control)]
    return line
