"""Cost of smaller KV caches on Ouro-nano: `python benchmarks/kv_kinds.py --most 15`.

Compares float32 with int8, int4 and one cache shared by all loops: answers to held-out questions, likelihood of right
answers, and divergence in long contexts. Text after a prompt is fed token by token, as in generation, because sharing
has no effect on prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import nano
import numpy as np

import ouro_edge
from ouro_edge.arch.weights import Array

KINDS = {  # arguments of `load`; the first one is the reference
    "fp32": ("fp32", "none"),
    "int8": ("int8", "none"),
    "int4": ("int4", "none"),
    "shared": ("fp32", "last"),
}
FULL = ouro_edge.FullDepth()
END = "<|im_end|>"

Question = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens to be fed one by one after a prompt."""

    prompt: list[int]
    rest: list[int]
    answers: list[bool]  # whether a token of the rest is part of an answer


@dataclass(frozen=True, slots=True)
class Kind:
    """Results of one kind of cache."""

    full: list[nano.Answer]
    shipped: list[nano.Answer]  # at the model's own exit threshold
    fed: list[nano.Answer]  # at full depth, with the question fed token by token like an answer
    right: list[Array]  # [T, V] log-probabilities along the right answers
    long: list[Array]  # the same for the long texts
    kv_bytes: int  # of the longest


def prompt_of(model: ouro_edge.Model, question: Question) -> list[int]:
    """The ids of a question, up to the beginning of the answer."""
    return model.tokenizer.encode(model.render([{"role": "user", "content": question["prompt"]}]))


def right_answer(model: ouro_edge.Model, question: Question) -> Text:
    """A question, and its right answer including the end token."""
    answer = model.tokenizer.encode(question["answer"] + END)
    return Text(prompt_of(model, question), answer, [True] * len(answer))


def conversation(model: ouro_edge.Model, asked: Iterable[Question], length: int) -> Text:
    """Questions and the model's greedy answers in turns, at most `length` tokens."""
    sequence, ids, answers = model.new_sequence(), [], []
    for question in asked:
        turn = prompt_of(model, question)
        if len(ids) + len(turn) >= length:
            break
        ids, answers = ids + turn, answers + [False] * len(turn)
        *tokens, _ = model.generate(ids, max_tokens=min(48, length - len(ids)), exit=FULL, sequence=sequence,
                                    sampler=ouro_edge.Sampler())  # fmt: skip
        ids, answers = ids + [token.id for token in tokens], answers + [True] * len(tokens)
    first = answers.index(True)  # the first question is the prompt
    return Text(ids[:first], ids[first:], answers[first:])


def read(model: ouro_edge.Model, text: Text) -> tuple[Array, int]:
    """[T, V] log-probabilities before each token of the rest, at full depth, and the bytes of keys and values."""
    sequence, rows = model.new_sequence(), []
    sequence.append(text.prompt)
    for token in text.rest:
        rows.append(sequence.run_until_exit(FULL).log_probabilities[0].astype(np.float32))
        sequence.append([token])
    return np.array(rows), sequence.kv_bytes


def ask_fed(model: ouro_edge.Model, asked: Iterable[Question]) -> list[nano.Answer]:
    """Answers at full depth to questions whose tokens were fed one by one."""
    answers = []
    for question in asked:
        sequence = model.new_sequence()
        for token in prompt_of(model, question)[:-1]:
            sequence.append([token])
            sequence.run_until_exit(FULL)
        answers += nano.ask(model, [question], FULL, sequence)
    return answers


def examine(model: ouro_edge.Model, asked: Sequence[Question], right: Iterable[Text], long: Iterable[Text]) -> Kind:
    """All results for the cache of a loaded model."""
    readings = [read(model, text) for text in long]
    return Kind(
        nano.ask(model, asked, FULL),
        nano.ask(model, asked, model.default_exit()),
        ask_fed(model, asked),
        [read(model, text)[0] for text in right],
        [logs for logs, _ in readings],
        max(size for _, size in readings),
    )


def loss(texts: Iterable[Text], readings: Iterable[Array]) -> float:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    pairs = zip(texts, readings, strict=True)
    return -float(np.mean(np.concatenate([logs[np.arange(len(t.rest)), t.rest][t.answers] for t, logs in pairs])))


def divergence(exact: Sequence[Array], other: Sequence[Array]) -> tuple[float, float]:
    """Mean KL to the exact cache in nats, and the share of positions with the same first choice."""
    p, q = np.concatenate(exact).astype(np.float64), np.concatenate(other)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean()), float((p.argmax(1) == q.argmax(1)).mean())


def by_hops(answers: Sequence[nano.Answer]) -> str:
    """Exact match for all questions, and for one hop, two hops, ..."""
    hops = sorted({a.hops for a in answers})
    parts = "/".join(f"{nano.accuracy(a for a in answers if a.hops == h):.0%}" for h in hops)
    return f"{nano.accuracy(answers):.1%} ({parts})"


def table(kinds: dict[str, Kind], right: Sequence[Text], long: Sequence[Text]) -> str:
    """A Markdown table, one column per kind of cache."""
    exact = next(iter(kinds.values()))
    rows: dict[str, list[str]] = {}

    def add(name: str, cell: str) -> None:
        rows.setdefault(name, []).append(cell)

    for kind in kinds.values():
        same = fmean(a.text == b.text for a, b in zip(kind.full, exact.full, strict=True))
        kl, top = divergence(exact.long, kind.long)
        add("memory of fp32's", f"1/{exact.kv_bytes / kind.kv_bytes:.0f}")
        add("exact match, full depth (by hops)", by_hops(kind.full))
        add("exact match, shipped exit (by hops)", by_hops(kind.shipped))
        add("exact match, question fed by tokens (by hops)", by_hops(kind.fed))
        add("same greedy answers as fp32", f"{same:.1%}")
        add("NLL of right answers, nats a token", f"{loss(right, kind.right):.4f}")
        add("NLL of own answers in long contexts", f"{loss(long, kind.long):.4f}")
        add("KL to fp32 in long contexts, nats", f"{kl:.2g}")
        add("same first choice in long contexts", f"{top:.1%}")
    lines = ["| | " + " | ".join(kinds) + " |", "| --- " * (1 + len(kinds)) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def main() -> None:
    """Compare the kinds of cache on the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="an exported model that answers these questions; the built-in one")
    parser.add_argument("--most", type=int, help="maximum number of questions per family and number of hops")
    parser.add_argument("--contexts", type=int, default=4, help="number of long contexts (%(default)s)")
    parser.add_argument("--length", type=int, default=500, help="tokens of a long context (%(default)s)")
    options = parser.parse_args()
    asked = nano.questions(nano.DATA / "questions.test.jsonl", options.most)
    with ouro_edge.load(options.model, kv="fp32", threads=1) as model:
        right = [right_answer(model, question) for question in asked]
        # Every n-th question, so that each context has all families and hops.
        parts = [asked[i :: options.contexts] for i in range(options.contexts)]
        long = [conversation(model, part[::-5] + part, options.length) for part in parts]
    kinds = {}
    for name, (kv, share) in KINDS.items():
        with ouro_edge.load(options.model, kv=kv, kv_share=share, threads=1) as model:
            kinds[name] = examine(model, asked, right, long)
    print(f"{len(asked)} test questions, {sum(map(len, (t.answers for t in right)))} tokens of right answers; "
          f"{len(long)} long contexts, {sum(len(t.rest) for t in long)} tokens fed, "
          f"{sum(sum(t.answers) for t in long)} of them answers.\n")  # fmt: skip
    print(table(kinds, right, long))


if __name__ == "__main__":
    main()
