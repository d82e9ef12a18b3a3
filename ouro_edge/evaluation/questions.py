"""Exact match: how many questions a model answers with exactly the expected text, at every depth and by exit rule.

A greedy answer is right exactly when every token of the expected answer, and the end after it, is the most probable one
after those before. One pass over question and answer therefore measures all depths at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.model import Model
from ouro_edge.system.progress import Progress


@dataclass(frozen=True, slots=True)
class Question:
    """A message of a user, and the answer that counts as right."""

    prompt: str
    answer: str


def read_questions(file: Path, most: int | None = None) -> list[Question]:
    """Questions of a JSONL file: objects with "prompt" (or "question") and "answer". RequestError names a bad line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RequestError(f"{file} cannot be read: {problem}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = load_json(line)
            prompt = record["prompt"] if "prompt" in record else record["question"]
            answer = record["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
            raise RequestError(f'{file}, line {number}: expected an object with the texts "prompt" and "answer"')
        found.append(Question(prompt, answer))
    if not found:
        raise RequestError(f"{file} has no questions; expected one JSON object in each line")
    return found[:most]


def exact_match(
    model: Model,
    questions: Sequence[Question],
    exits: Iterable[tuple[str, ExitPolicy]] = (),
    progress: Progress | None = None,
) -> list[float]:
    """The share of right answers at every depth, then with each exit rule. Needs a tokenizer."""
    rules, depths = list(exits), model.config.depths
    right = np.zeros(len(depths) + len(rules))
    for number, question in enumerate(questions):
        if progress and number % 16 == 0:
            progress(number, len(questions), "questions")
        prompt = model.tokenizer.encode(model.render([{"role": "user", "content": question.prompt}]))
        answer = model.tokenizer.encode(question.answer)
        ids, scored = prompt + answer, slice(len(prompt) - 1, len(prompt) + len(answer))
        prefix = model.prefix_of(prompt)
        hidden = model.states(ids, prefix=prefix).hidden
        for at, depth in enumerate(depths):
            right[at] += _is_right(model.logits(hidden[depth - 1, scored]), answer, model.stop_ids)
        for at, (_, rule) in enumerate(rules, start=len(depths)):
            logits = model.forward(ids, exit=rule, prefix=prefix).logits
            right[at] += _is_right(logits[scored], answer, model.stop_ids)
    if progress:
        progress(len(questions), len(questions), "")
    return (right / len(questions)).tolist()


def _is_right(logits: np.ndarray, answer: list[int], stop_ids: Iterable[int]) -> bool:
    best = np.asarray(logits).argmax(axis=1).tolist()
    return best[:-1] == answer and best[-1] in stop_ids
