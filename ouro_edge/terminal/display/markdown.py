"""Markdown for a terminal: rich's renderer with plainer headings and code, without dropping any text.

Lines have no trailing spaces, so that copied text is clean. A link shows its target as text: an escape sequence with an
address from a model is never printed.
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

THEME = Theme({"markdown.code": "bold cyan"})  # rich's default has a black background, visible in a light terminal
_MATH = ("\\(", "\\)", "\\[", "\\]")  # LaTeX; Markdown would read these as escaped brackets
_MAX_NESTING_LEVEL = 12  # six nested lists


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
    """One or several blocks of a model's answer; the model's line breaks are kept."""

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
    """The renderable of a block; text nested too deeply for the parser is shown unformatted."""
    markdown = AnswerMarkdown(text)
    too_deep = any(token.level > _MAX_NESTING_LEVEL for token in markdown.parsed)
    return Text(text) if too_deep else markdown


def _keep_as_written(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
    elif token.type == "text_special":
        token.type = "text"
        if token.markup in _MATH:
            token.content = token.markup
    elif token.type == "image":  # rich would draw a symbol beside the text and crop what follows
        token.content = f"[image: {token.content}] ({token.attrs.get('src', '')})"
        token.type, token.tag, token.children = "text", "", None


class Trimmed:
    """A renderable without trailing spaces and surrounding empty lines; plain text where rich fails."""

    def __init__(self, content: RenderableType, fallback: str = "", *, last: int | None = None) -> None:
        self.content, self.fallback, self.last = content, fallback, last  # `last`: show only the last lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in _trimmed(self._lines(console, options.update(height=None)))[-(self.last or 0) :]:
            yield from line
            yield Segment.line()

    def _lines(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        try:
            return console.render_lines(self.content, options, pad=False)
        except Exception:  # unusual Markdown in a narrow window can break the renderer; the text must still be shown
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
