"""The wording of messages, docstrings and documents: plain technical English, and one word for one thing."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A phrase, and what to write instead.
PHRASES = {
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer\b|more than\b|less than\b)[A-Za-z]": "is not a",
    r"\bwanted\b": "expected",
    r"\baffairs?\b": "the caller must, is done by",
    r"\banew\b": "again, regenerate",
    r"\bat the most\b": "at most",
    r"\bgone on from\b": "extended",
    r"\bunasked\b": "automatically; pending (loops)",
    r"\blikeliest\b": "most probable, top",
    r"\bbeforehand\b": "first, before",
    r"\b(?:nobody|somebody)\b": "name the program, process or user",
    r"\bstrangers?\b": "untrusted",
    r"\bthe (?:fast|lean) way\b|\b(?:copy for|way of) long prompts\b|\blean prompts?\b": "prefill copy",
    r"\bthoughts\b|\bthe thought\b|\bthought for\b": "reasoning; exit depth",
    r"\bhears? (?:of|429)\b": "is called with, gets",
    r"\border of their coming\b": "first come, first served",
    r"\blies? (?:in|beside|below|here|there)\b": "is stored in",
    r"\bKnows\b|\b[Rr]efuses to know\b": "uses, must not import",
    r"\bour(?:s| own)\b": "name the package, the module or the file",
    r"\bWho (?:wants|serves|cannot)\b": "To keep X, do Y",
}
# Files that are not rewritten yet. The list must become empty.
PENDING: frozenset[str] = frozenset()
_DOCUMENTS = ("*.md", "docs/*.md", "examples/*/README.md", "training/README.md", "packaging/*/README.md")


def string_literals(path: Path) -> Iterator[str]:
    """Every text constant of a module: docstrings, messages, and the fixed parts of f-strings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def comments(source: str) -> Iterator[str]:
    """The comments of a module; consecutive comment lines are one text, because a phrase can span lines."""
    text, last = "", (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, column = token.start
        if text and (line - 1, column) != last:
            yield text
            text = ""
        text += " " + token.string.lstrip("#")
        last = line, column
    if text:
        yield text


def prose(path: Path) -> str:
    """A document without code blocks and inline code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"(?m)^    \S.*$", "", text)
    return re.sub(r"`[^`]*`", "", text)


def problems(text: str) -> list[str]:
    """What is wrong with a text: each phrase with its replacement."""
    line = " ".join(text.split())
    return [
        f"{line[max(0, found.start() - 30) : found.end() + 20]!r}: write {instead!r}"
        for phrase, instead in PHRASES.items()
        for found in re.finditer(phrase, line)
    ]


def texts() -> dict[str, list[str]]:
    """Path in the repository -> the texts to check."""
    found = {
        path: [*string_literals(path), *comments(path.read_text(encoding="utf-8"))]
        for path in sorted((ROOT / "ouro_edge").rglob("*.py"))
    }
    found |= {path: [prose(path)] for pattern in _DOCUMENTS for path in sorted(ROOT.glob(pattern))}
    return {path.relative_to(ROOT).as_posix(): parts for path, parts in found.items()}


TEXTS = texts()


@pytest.mark.parametrize("name", TEXTS)
def test_the_wording_is_plain(name: str) -> None:
    found = [problem for text in TEXTS[name] for problem in problems(text)]
    if name in PENDING:
        assert found, f"{name} is rewritten: remove it from PENDING"
    else:
        assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "the body is no JSON",
        "kv is 'x'; wanted auto",
        "Stops are the caller's affair.",
        "answer the last question anew",
        "held at the most",
        "used unasked",
        "the likeliest tokens",
        "Files that nobody needs",
        "prompts go the lean way",
        "the copy for long prompts",
        "a line\nis no text",
        "Knows NumPy only.",
    ],
)
def test_a_phrase_is_found(text: str) -> None:
    assert problems(text)


def test_a_phrase_is_found_in_comments() -> None:
    source = "x = 1  # files that nobody needs\ny = 2\n# prompts that go the\n# lean way\nz = '# stranger'\n"
    assert [len(problems(text)) for text in comments(source)] == [1, 1]


@pytest.mark.parametrize("text", ["There is no network.", "results are no longer exact", "expected auto, fp32 or int8"])
def test_plain_english_is_accepted(text: str) -> None:
    assert problems(text) == []
