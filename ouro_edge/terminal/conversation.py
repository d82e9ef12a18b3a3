"""A conversation: its messages, the sequence that holds their KV, and usage totals.

One owner, one thread. Must not import terminal libraries.
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
    """Text that can be displayed now, of the answer or of the reasoning before it."""

    text: str  # empty for a token without visible text: every token yields a piece
    thinking: bool
    depth: int  # of the token that completed the text
    tokens: int  # generated so far


@dataclass(slots=True)
class Answer:
    """The answer of one turn during generation."""

    tokens: list[Token] = field(default_factory=list)
    thought: str = ""
    text: str = ""  # without the reasoning
    done: Done | None = None


@dataclass(slots=True)
class Totals:
    """Sums over all turns of a conversation, including undone turns, because they were computed."""

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

    The messages stay consistent in every case. A turn that fails or is stopped keeps the text generated so far; a turn
    without any text is removed together with its question.
    """

    def __init__(self, model: Model, *, system: str | None = None) -> None:
        self.model = model
        self.system = system
        self.messages: list[Message] = []  # alternately user and assistant, reasoning included
        self.sequence = model.new_sequence()
        self.totals = Totals()
        self.last: Answer | None = None
        self._read: list[tuple[str, list[int]]] = []  # text and ids of the sequence after each turn, where known
        self.tags = model.reasoning_tags

    def prompt(self, messages: list[Message], **template: Any) -> str:
        """The system message and `messages`, rendered by the chat template."""
        start: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.model.render([*start, *messages], **template)

    def ask(
        self, text: str, *, template: Mapping[str, Any], cancel: Cancel | None, **options: Any
    ) -> Iterator[Piece | Done]:
        """Send `text` and stream the answer. Raises RequestError and its subclasses, as `Model.generate` does."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.prompt(messages, **template)
        opened = opened_by(prompt, self.tags)
        answer, said = Answer(), [opened]
        ids = self._encode(prompt)
        if options.get("prefix") is None:
            options["prefix"] = self.model.prefix_of(ids)
        events = self.model.generate(ids, sequence=self.sequence, cancel=cancel, new_text=True, **options)
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
            if answer.done is None:  # the block call may have been interrupted
                self.sequence = self.model.new_sequence()
            raise
        finally:
            if answer.tokens:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]
                self.last = answer
                self._remember(prompt, ids, answer, "".join(said[1:]))

    def retry(self, *, template: Mapping[str, Any], cancel: Cancel | None, **options: Any) -> Iterator[Piece | Done]:
        """Regenerate the last answer; the old answer is restored when the new one fails before its first token."""
        before, last, read = self.messages, self.last, list(self._read)
        question = self.undo()
        try:
            yield from self.ask(question, template=template, cancel=cancel, **options)
        finally:
            if len(self.messages) < len(before):
                self.messages, self.last, self._read = before, last, read

    def undo(self) -> str:
        """Remove the last question and its answer; returns the question. RequestError when there is none."""
        if not self.messages:
            raise RequestError("the conversation has no messages yet")
        at = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=0)
        question = self.messages[at]["content"]
        self.messages, self.last = self.messages[:at], None
        del self._read[at // 2 :]
        return question

    def clear(self) -> None:
        """Remove all messages except the system message."""
        self.messages, self.last, self._read = [], None, []
        self.sequence = self.model.new_sequence()

    def resume(self, system: str | None, messages: list[Message], sequence: TokenSequence | None) -> None:
        """Continue a saved conversation; `sequence` may already hold the state of its messages."""
        self.clear()
        self.system, self.messages = system, messages
        self._read = [("", [])] * (len(messages) // 2)
        if sequence is not None and messages:
            self.sequence = sequence
            self._read[-1] = self.model.tokenizer.decode(sequence.tokens, skip_special=False), list(sequence.tokens)

    def figures(self) -> list[tuple[str, str]]:
        """Labels and values to display: usage of the conversation so far."""
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
        """Ids of a prompt. Earlier turns keep their ids, because the tokenizer might split the text differently."""
        for text, ids in reversed(self._read):
            if text and prompt.startswith(text):
                return ids + self.model.tokenizer.encode(prompt[len(text) :])
        return self.model.tokenizer.encode(prompt)

    def _remember(self, prompt: str, ids: list[int], answer: Answer, said: str) -> None:
        spoken = [token.id for token in answer.tokens]
        if spoken[-1] in self.model.stop_ids:
            spoken.pop()
        same = self.model.tokenizer.decode(spoken, skip_special=False) == said  # false if a stop string cut the text
        self._read.append((prompt + said, ids + spoken) if same else ("", []))


def _record(answer: Answer, pieces: list[tuple[str, bool]]) -> Iterator[Piece]:
    for text, thinking in pieces:
        if thinking:
            answer.thought += text
        else:
            answer.text += text
        yield Piece(text, thinking, answer.tokens[-1].depth, len(answer.tokens))
