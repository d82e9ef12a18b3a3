"""A conversation: its messages, the sequence that remembers their KV, and what its answers cost. Knows the runtime.

One owner, one thread. Nothing here knows a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done, Token
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.text.reasoning import ReasoningParser, opened_by, text_with_tags

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text that may be shown now, of the answer or of the thought before it."""

    text: str  # empty for a token that shows nothing: every token is heard of
    thinking: bool
    depth: int  # of the token that completed it
    tokens: int  # generated so far


@dataclass(slots=True)
class Answer:
    """What one turn brought, as it grows."""

    tokens: list[Token] = field(default_factory=list)
    thought: str = ""
    text: str = ""  # without the thought
    done: Done | None = None


@dataclass(slots=True)
class Totals:
    """Sums over all turns of a conversation, undone ones included: what was computed was computed."""

    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    loops_run: int = 0
    depth: float = 0.0  # summed over generated tokens
    seconds: float = 0.0

    def add(self, done: Done) -> None:
        """Count one turn."""
        usage = done.usage
        self.turns += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.loops_run += usage.loops_run
        self.depth += usage.mean_depth * usage.completion_tokens
        self.seconds += done.timings.total


class Conversation:
    """Messages and running state. `ask` and `retry` yield Pieces and one Done.

    Whatever happens, the messages stay sound. A turn that fails or is stopped keeps what was said; one that said
    nothing is forgotten with its question.
    """

    def __init__(self, model: Model, *, system: str | None = None) -> None:
        self.model = model
        self.system = system
        self.messages: list[Message] = []  # user and assistant in turns, thoughts included
        self.sequence = model.new_sequence()
        self.totals = Totals()
        self.last: Answer | None = None
        self._read: list[tuple[str, list[int]]] = []  # text and ids of the sequence after each turn that has them
        self.tags = model.reasoning_tags

    def prompt(self, messages: list[Message], **template: Any) -> str:
        """The text that the chat template makes of the system message and `messages`."""
        start: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.model.render([*start, *messages], **template)

    def ask(
        self, text: str, *, template: Mapping[str, Any], cancel: Cancel | None, **options: Any
    ) -> Iterator[Piece | Done]:
        """Say `text` and stream the answer. RequestError and its kinds, as of `Model.generate`."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.prompt(messages, **template)
        opened = opened_by(prompt, self.tags)
        answer, said = Answer(), [opened]
        ids = self._encode(prompt)
        events = self.model.generate(ids, sequence=self.sequence, cancel=cancel, **options)
        splitter = ReasoningParser(self.tags, in_reasoning=bool(opened))
        try:
            for event in events:
                if isinstance(event, Token):
                    answer.tokens.append(event)
                    text_now = text_with_tags(event, self.model.tokenizer, self.tags)
                    said.append(text_now)
                    yield from _record(answer, splitter.push(text_now) or [("", splitter.in_reasoning)])
                else:
                    yield from _record(answer, splitter.flush())
                    answer.done = event
                    self.totals.add(event)
                    yield event
        except RequestError:
            raise
        except BaseException:
            if answer.done is None:  # the block may have been left in the middle of something
                self.sequence = self.model.new_sequence()
            raise
        finally:
            if answer.tokens:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]
                self.last = answer
                self._remember(prompt, ids, answer, "".join(said[1:]))

    def retry(self, *, template: Mapping[str, Any], cancel: Cancel | None, **options: Any) -> Iterator[Piece | Done]:
        """Answer the last question again; the old answer comes back when the new one fails before its first token."""
        before, last, read = self.messages, self.last, list(self._read)
        question = self.undo()
        try:
            yield from self.ask(question, template=template, cancel=cancel, **options)
        finally:
            if len(self.messages) < len(before):
                self.messages, self.last, self._read = before, last, read

    def undo(self) -> str:
        """Forget the last question and its answer; returns the question. RequestError when there is none."""
        if not self.messages:
            raise RequestError("nothing has been said yet")
        at = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=0)
        question = self.messages[at]["content"]
        self.messages, self.last = self.messages[:at], None
        del self._read[at // 2 :]
        return question

    def clear(self) -> None:
        """Forget everything that was said; the system message stays."""
        self.messages, self.last, self._read = [], None, []
        self.sequence = self.model.new_sequence()

    def resume(self, system: str | None, messages: list[Message], sequence: TokenSequence | None) -> None:
        """Go on with messages that were said elsewhere; `sequence` may hold their state already."""
        self.clear()
        self.system, self.messages = system, messages
        self._read = [("", [])] * (len(messages) // 2)
        if sequence is not None and messages:
            self.sequence = sequence
            self._read[-1] = self.model.tokenizer.decode(sequence.tokens, skip_special=False), list(sequence.tokens)

    def figures(self) -> list[tuple[str, str]]:
        """Names and values for people: what the conversation has cost so far."""
        totals, sequence, config = self.totals, self.sequence, self.model.config
        made = totals.completion_tokens
        rows = [
            ("turns", str(totals.turns)),
            ("tokens generated", str(made)),
            ("prompt tokens read", f"{totals.prompt_tokens - totals.cached_tokens} of {totals.prompt_tokens}"),
            ("seconds", f"{totals.seconds:.1f}"),
            ("context", f"{len(sequence)} of {config.max_positions} tokens"),
            ("KV cache", f"{sequence.kv_bytes / 1e6:.1f} MB, {self.model.kv}"),
        ]
        if config.loops > 1 and made:
            rows.append(("mean depth", f"{totals.depth / made:.2f} of {config.loops} loops"))
            rows.append(("loops", f"{totals.loops_run} run, {sequence.pending_loops} pending"))
        return rows

    def _encode(self, prompt: str) -> list[int]:
        """Ids of a prompt: for what was said before, the very ones; the tokenizer might cut its text otherwise."""
        for text, ids in reversed(self._read):
            if text and prompt.startswith(text):
                return ids + self.model.tokenizer.encode(prompt[len(text) :])
        return self.model.tokenizer.encode(prompt)

    def _remember(self, prompt: str, ids: list[int], answer: Answer, said: str) -> None:
        spoken = [token.id for token in answer.tokens]
        if spoken[-1] in self.model.stop_ids:
            spoken.pop()
        same = self.model.tokenizer.decode(spoken, skip_special=False) == said  # no stop string has cut it
        self._read.append((prompt + said, ids + spoken) if same else ("", []))


def _record(answer: Answer, pieces: list[tuple[str, bool]]) -> Iterator[Piece]:
    for text, thinking in pieces:
        if thinking:
            answer.thought += text
        else:
            answer.text += text
        yield Piece(text, thinking, answer.tokens[-1].depth, len(answer.tokens))
