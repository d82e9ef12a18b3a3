"""Reads gate-fitting data: lines of a JSONL file -> pieces of token ids, each used for fitting or held out.

A line is an object of one of four forms; other fields are ignored, and the first matching form is used:

    {"messages": [...]}              a chat in the model's template; only tokens of the assistant count
    {"prompt": "...", "answer": "..."}   the same for one turn; without a chat template, the texts unchanged
    {"text": "..."}                  every token except the first counts
    {"ids": [...]}                   the same for token ids; needs no tokenizer

A counted token is one that the model must predict; its state is that of the position before it. The token that ends an
answer counts if it is a stop id of the model. Prompt and answer are tokenised separately, as during generation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.checks import check_ids
from ouro_edge.runtime.model import Model

_EXPECTED_FORM = 'expected an object with "text", "messages", "prompt" and "answer", or "ids"'
_HELD_OUT_INTERVAL = 5  # one line in five, selected by its hash


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file, in a known form."""

    number: int  # from 1
    source: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that the model reads in one pass."""

    ids: tuple[int, ...]  # [T]
    counted: NDArray[np.int64]  # [N] ascending indices into ids, never 0: the tokens to predict
    held_out: bool

    def first(self, count: int) -> Piece:
        """The piece with at most `count` counted tokens, cut after the last of them."""
        counted = self.counted[:count]
        return Piece(self.ids[: int(counted[-1]) + 1] if len(counted) else (), counted, self.held_out)


def read_lines(file: Path) -> list[Line]:
    """All non-blank lines. RequestError, with the line number, for a line in none of the forms."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"{file} does not exist; give a JSONL file") from None
    except OSError as problem:
        raise RequestError(f"{file} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise RequestError(f"{file} is not UTF-8 text (byte {problem.start}); convert it") from None
    lines = []
    for number, source in enumerate(text.split("\n"), start=1):
        if source := source.strip():
            lines.append(Line(number, source, _record(source, f"{file} line {number}")))
    if not lines:
        raise RequestError(f"{file} is empty; expected one JSON object per line")
    return lines


def encode(line: Line, model: Model, window: int) -> list[Piece]:
    """The pieces of a line: one, or several of up to `window` positions for longer text or ids.

    RequestError when the model cannot encode the line. A piece may have no counted tokens.
    """
    record = line.record
    if "messages" in record or "prompt" in record:
        ids, counted = _chat(record, model)
        if len(ids) - 1 > model.config.max_positions:
            raise ContextOverflowError(f"a chat of {len(ids)} tokens does not fit this model's context of "
                                       f"{model.config.max_positions}: shorten it")  # fmt: skip
        return [Piece(tuple(ids), np.array(counted, np.int64), _is_held_out(line.source))]
    ids = model.tokenizer.encode_text(record["text"]) if "text" in record else record["ids"]
    check_ids(ids, model.config.vocab_size)
    pieces = []
    for k, start in enumerate(range(0, max(1, len(ids) - 1), window)):
        part = tuple(ids[start : start + window + 1])  # the last token is only predicted
        # Pieces of a long text are held out separately, so that a book on one line is usable too.
        held_out = _is_held_out(f"{k}\n{line.source}" if k else line.source)
        pieces.append(Piece(part, np.arange(1, len(part)), held_out))
    return pieces


def draw(
    lines: Sequence[Line], model: Model, *, window: int, most_fitted: int, most_held_out: int, seed: int, name: str
) -> tuple[list[Piece], list[Piece]]:
    """Pieces for fitting and pieces held out, of lines in random order, up to the requested numbers of counted tokens.

    Whether a piece is held out depends on its line only, not on the seed. `name` is the file name, for errors.
    """
    room = {False: most_fitted, True: most_held_out}
    drawn: dict[bool, list[Piece]] = {False: [], True: []}
    for index in np.random.default_rng(seed).permutation(len(lines)):
        line = lines[index]
        try:
            pieces = encode(line, model, window)
        except RequestError as problem:
            raise type(problem)(f"{name} line {line.number}: {problem}") from None
        for piece in pieces:
            piece = piece.first(room[piece.held_out])
            if len(piece.counted):
                drawn[piece.held_out].append(piece)
                room[piece.held_out] -= len(piece.counted)
        if not any(room.values()):
            break
    return drawn[False], drawn[True]


def count(pieces: Iterable[Piece]) -> int:
    """The number of counted tokens."""
    return sum(len(piece.counted) for piece in pieces)


def _record(source: str, where: str) -> dict[str, Any]:
    try:
        record = load_json(source)
    except ValueError as problem:
        raise RequestError(f"{where} is not valid JSON ({problem}); {_EXPECTED_FORM}") from None
    if not isinstance(record, dict):
        raise RequestError(f"{where} is {type(record).__name__}; {_EXPECTED_FORM}")
    if "messages" in record:
        found = record["messages"]
        if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
            raise RequestError(f"{where} has messages that are not a list of objects with role and content")
        if not any(m.get("role") == "assistant" for m in found):
            raise RequestError(f"{where} has no message of the assistant to predict")
        return {"messages": found}
    if "prompt" in record and "answer" in record:
        names: tuple[str, ...] = ("prompt", "answer")
    elif "text" in record:
        names = ("text",)
    elif "ids" in record:
        if not isinstance(record["ids"], list):
            raise RequestError(f"{where} has ids of {type(record['ids']).__name__}; expected a list of token ids")
        return {"ids": record["ids"]}
    else:
        raise RequestError(f"{where} has the fields {sorted(record)[:6]}; {_EXPECTED_FORM}")
    for name in names:
        if not isinstance(record[name], str):
            raise RequestError(f"{where} has {name} of {type(record[name]).__name__}; expected text")
    return {name: record[name] for name in names}


def _chat(record: dict[str, Any], model: Model) -> tuple[list[int], list[int]]:
    """Ids of a chat up to its last counted token, and the indices of counted tokens."""
    tokenizer = model.tokenizer
    templated = model.chat_template is not None
    if "messages" in record:
        if not templated:
            raise RequestError("this model has no chat template for messages; give prompt and answer, or text")
        turns = _turns(record["messages"], model)
    elif templated:
        user = {"role": "user", "content": record["prompt"]}
        turns = _turns([user, {"role": "assistant", "content": record["answer"]}], model)
    else:
        turns = [(record["prompt"], record["answer"])]
    ids: list[int] = []
    counted: list[int] = []
    for context, answer in turns:
        ids += tokenizer.encode(context)
        said = tokenizer.encode(answer)
        end = next((i + 1 for i, token in enumerate(said) if token in model.stop_ids), len(said))
        counted += range(max(1, len(ids)), len(ids) + end)
        ids += said
    return ids[: counted[-1] + 1 if counted else 0], counted


def _turns(messages: list[dict[str, Any]], model: Model) -> list[tuple[str, str]]:
    """For each message of the assistant: the text before it, and the message with the template's text after it."""
    turns: list[tuple[str, str]] = []
    done = ""
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = model.render(messages[:i])
        after = model.render(messages[: i + 1], add_generation_prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise RequestError("the chat template changes earlier turns when more follow; give prompt and answer "
                               "for each turn")  # fmt: skip
        turns.append((before[len(done) :], after[len(before) :]))
        done = after
    return turns


def _is_held_out(source: str) -> bool:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_INTERVAL == 0
