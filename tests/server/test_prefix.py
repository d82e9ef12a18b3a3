"""Prompts of a prefix-LM in the server: a text is the prefix, token ids are not, `prefix` says otherwise."""

from __future__ import annotations

import pytest
from models import GOLDEN

import ouro_edge

HRM = GOLDEN.parent / "hrm-tiny" / "hrm-tiny.gguf"


@pytest.fixture(scope="module")
def model():
    with ouro_edge.load(HRM) as loaded:
        yield loaded


def answer(model: ouro_edge.Model, ids: list[int], prefix: int) -> str:
    *_, done = model.generate(ids, prefix=prefix, max_tokens=6, sampler=ouro_edge.Sampler())
    return done.text


def test_completions(model, serve):
    server, ids = serve(model), model.tokenizer.encode_text("hello there")

    def text(prompt, **fields):
        reply = server.complete(prompt, max_tokens=6, temperature=0, **fields)
        assert reply.status_code == 200, reply.text
        return [choice["text"] for choice in reply.json()["choices"]]

    for _ in range(2):  # the second time, the prefix cache has sequences with other prefixes
        assert text("hello there") == [answer(model, ids, len(ids))]
        assert text("hello there", prefix=0) == [answer(model, ids, 0)]
        assert text(ids) == [answer(model, ids, 0)]
        assert text(ids, prefix=3) == [answer(model, ids, 3)]
        assert text("hello there", n=3) == [answer(model, ids, len(ids))] * 3
        assert text(ids, n=2, prefix=4) == [answer(model, ids, 4)] * 2
    assert len({answer(model, ids, prefix) for prefix in (0, 3, 4, len(ids))}) > 2


def test_a_prefix_that_is_not_possible(model, serve):
    server = serve(model)
    reply = server.complete([20, 21], prefix=3)
    assert reply.status_code == 400 and "prefix is 3" in reply.json()["error"]["message"]
    assert server.complete([20, 21], prefix=-1).status_code == 400
    assert server.complete([20, 21], prefix="all").status_code == 400
    causal = serve()
    reply = causal.complete("hello", prefix=2)
    assert reply.status_code == 400 and "does not say prefix_lm" in reply.json()["error"]["message"]
