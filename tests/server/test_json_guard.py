"""What a grammar cannot say of JSON: keys are not repeated, numbers end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ouro_edge.server.openai.constraints import Schemas
from ouro_edge.server.openai.json_guard import JsonGuard, Vocabulary

WORDS = [b'"', b"a", b"b", b'a"', b'b":', b"{", b"}", b"[", b"]", b",", b", ", b":", b" ", b"1", b"e", b"\\", b'"a":',
         b' "a"', b"12", b'ab"', b""]  # fmt: skip


def forbidden(text: bytes) -> set[bytes]:
    """The tokens that are forbidden after a text, which comes byte by byte."""
    guard = JsonGuard(Vocabulary([*WORDS, *(bytes([i]) for i in range(256))]))
    for byte in text:
        guard.accept(len(WORDS) + byte)
    ids = np.concatenate([np.zeros(0, np.int64), *guard.forbidden()])
    return {WORDS[i] for i in ids if i < len(WORDS)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", set()),
        (b'{"a', set()),
        (b'{"a": 1, "a', {b'"', b'"a":'}),
        (b'{"a": 1, "', {b'a"'}),
        (b'{"ab": 1, "', {b'ab"'}),
        (b'{"ab": 1, "a', {b'b":'}),
        (b'{"a": 1,', {b'"a":', b' "a"'}),
        (b'{"a": 1, "c": "', set()),  # a value
        (b'{"a": {"', set()),  # another object
        (b'{"a": {"b": 1}, "', {b'a"'}),
        (b'[{"a": 1}, {"', set()),
        (b'{"a": ["', set()),
        (b'{"a": "},{", "', {b'a"'}),
        (b'{"a": "\\"", "', {b'a"'}),
        (b'{"a": 1, "\\', set()),  # what follows is escaped
        (b"1" * 23, set()),
        (b"1" * 24, {b"1", b"12", b"e"}),
        (b"1" * 24 + b", ", set()),
        (b'["' + b"1" * 50, set()),  # text
    ],
)
def test_what_is_forbidden(text: bytes, expected: set[bytes]) -> None:
    assert forbidden(text) == expected


def write(nano, schema, wish: str) -> str:
    """An answer whose tokens are, as far as they are allowed, those of `wish`, again and again."""
    constraint = Schemas(nano).compile(schema, "response_format")()
    ids, text = nano.tokenizer.encode(wish), list[int]()
    while not constraint.done and len(text) < 400:
        logits = np.zeros(nano.config.vocab_size, np.float32)
        logits[list(nano.tokenizer.encode("]}"))] = 0.5
        logits[ids[len(text) % len(ids)]] = 1
        constraint.mask(logits)
        text.append(int(logits.argmax()))
        constraint.accept(text[-1])
    return nano.tokenizer.decode(text)


def test_an_answer_has_no_key_twice(nano) -> None:
    schema = {
        "type": "object",
        "patternProperties": {"^[ab]{1,2}$": {"type": "null"}},
        "maxProperties": 3,
        "additionalProperties": False,
    }
    pairs = json.loads(write(nano, schema, '{"a": null, "a": null, "b": null, '), object_pairs_hook=list)
    assert len(pairs) == len(dict(pairs)) > 1


def test_a_number_ends(nano) -> None:
    assert len(write(nano, {"type": "array", "items": {"type": "number"}, "maxItems": 1}, "[0.11111111")) < 40


def test_a_key_that_is_the_only_one_left_is_allowed(nano) -> None:
    """The grammar asks for a second key that does not exist: better a repeated key than no answer."""
    schema = {"type": "object", "patternProperties": {"^a$": {"type": "null"}}, "additionalProperties": False}
    assert write(nano, {**schema, "minProperties": 2}, '{"a": null, ') == '{"a": null, "a": null}'
