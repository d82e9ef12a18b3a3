"""Splits the text of an answer into content and tool calls, piece by piece. Must not import models.

A free call has the format that SmolLM2, Qwen and Hermes were trained on: JSON between <tool_call> and </tool_call>. It
ends where its JSON ends, so tags inside its strings are data and a missing closing tag does no harm.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ouro_edge.server.openai.calls import Call, ValueScanner, deltas_of, find_calls, skip_between

OPENING_TAG, CLOSING_TAG = "<tool_call>", "</tool_call>"


class AnswerText:
    """Splits an answer's text into OpenAI's deltas; this base class returns all of it as content."""

    def push(self, text: str) -> dict[str, Any]:
        """The delta that is final so far."""
        return {"content": text} if text else {}

    def finish(self) -> dict[str, Any]:
        """The remaining delta at the end of the answer."""
        return {}


class ForcedCall(AnswerText):
    """An answer that is one call; an incomplete call, or other JSON, is returned as content."""

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._text = names, ""

    def push(self, text: str) -> dict[str, Any]:
        self._text += text
        return {}

    def finish(self) -> dict[str, Any]:
        calls = find_calls(self._text, self._names)
        return {"tool_calls": deltas_of(calls, 0)} if calls else {"content": self._text}


class FreeCalls(AnswerText):
    """Content that may contain calls; text that may begin a call is held back, white space after a call is dropped."""

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names, self._parallel = names, parallel
        self._held = ""
        self._tag: str | None = None  # inside a tag: what becomes content if no call follows, "" after a call
        self._scanner = ValueScanner()
        self._count = 0
        self._after_call = False
        self._content: list[str] = []  # of the next delta
        self._calls: list[Call] = []

    def push(self, text: str) -> dict[str, Any]:
        self._held += text
        while self._step():
            pass
        return self._delta()

    def finish(self) -> dict[str, Any]:
        while self._tag is not None:  # an incomplete call, or a quote that is never closed
            if self._tag == "" and CLOSING_TAG.startswith(self._held.strip()):
                self._held = ""
            before, found, after = self._held.partition(CLOSING_TAG)
            self._held = before + found
            self._leave()
            self._say(self._held)
            self._held = after
            while self._step():
                pass
        self._say(self._held)
        return self._delta()

    def _step(self) -> bool:
        """Take the next part of the held text; False when more text must arrive first."""
        if self._tag is None:
            return self._outside()
        start = skip_between(self._held, 0)
        if self._tag:
            self._tag += self._held[:start]
        rest = self._held = self._held[start:]
        if any(rest != tag and tag.startswith(rest) for tag in (OPENING_TAG, CLOSING_TAG)):
            return False
        if rest.startswith(CLOSING_TAG) and not self._tag:
            self._held = rest[len(CLOSING_TAG) :]
            return self._leave()
        if rest[0] not in "{[":
            return self._leave()
        end = self._scanner.end(rest)
        if end is None:
            return False
        calls = find_calls(rest[:end], self._names) if end > 0 else []
        if not calls:
            return self._leave()
        self._calls += calls
        self._after_call = True
        self._tag, self._held, self._scanner = "", rest[end:], ValueScanner()
        return True

    def _outside(self) -> bool:
        before, found, after = self._held.partition(OPENING_TAG)
        if found:
            self._say(before)
            self._tag, self._held, self._scanner = OPENING_TAG, after, ValueScanner()
            return True
        most = min(len(OPENING_TAG) - 1, len(self._held))
        keep = next(n for n in range(most, -1, -1) if self._held.endswith(OPENING_TAG[:n]))
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _leave(self) -> bool:
        """The tag ends, or contains no call and is content."""
        self._say(self._tag or "")
        self._tag = None
        return True

    def _say(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        if text:
            self._content.append(text)

    def _delta(self) -> dict[str, Any]:
        content, calls = "".join(self._content), self._calls
        self._content, self._calls = [], []
        if not self._parallel:
            calls = calls[: 1 - self._count]
        delta: dict[str, Any] = {"content": content} if content else {}
        if calls:
            delta["tool_calls"] = deltas_of(calls, self._count)
            self._count += len(calls)
        return delta


class CallsOrJson(AnswerText):
    """An answer that a grammar makes either calls between tags or JSON, in which tags are data."""

    def __init__(self, names: Collection[str], *, parallel: bool) -> None:
        self._calls = FreeCalls(names, parallel=parallel)
        self._reader: AnswerText | None = None

    def push(self, text: str) -> dict[str, Any]:
        if self._reader is None and text.strip():
            self._reader = self._calls if text.lstrip()[0] == OPENING_TAG[0] else AnswerText()
        return self._reader.push(text) if self._reader is not None else {}

    def finish(self) -> dict[str, Any]:
        return self._reader.finish() if self._reader is not None else {}
