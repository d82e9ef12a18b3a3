"""Arguments of the wrong kind: each public call refuses them itself, in one line that names them."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import ouro_edge
from ouro_edge.errors import OuroEdgeError, RequestError
from ouro_edge.testing import MockModel

NO_IDS = (5, None, 1.5, "abc", b"abc", {"a": 1}, [1.5], ["x"], [None], [True], [-1], [10**9], np.ones((2, 2), int))
NO_NUMBER = (None, "3", 1.5, True, [3], -1, 99)
CALLS = {
    "load": lambda model, value: ouro_edge.load(value),
    "progress": lambda model, value: ouro_edge.load(progress=value),
    "generate": lambda model, value: model.generate(value),
    "score": lambda model, value: model.score(value),
    "forward": lambda model, value: model.forward(value),
    "embed": lambda model, value: model.embed(value),
    "ascore": lambda model, value: asyncio.run(model.ascore(value)),
    "chat": lambda model, value: model.chat(value),
    "render": lambda model, value: model.render(value),
    "template": lambda model, value: model.chat([{"role": "user", "content": "hi"}], template=value),
    "stop": lambda model, value: model.generate([1], stop=value),
    "stop_ids": lambda model, value: model.generate([1], stop_ids=value),
    "sequence": lambda model, value: model.generate([1], sequence=value),
    "speculate": lambda model, value: model.generate([1], speculate=value),
    "logits": lambda model, value: model.logits(value),
    "append": lambda model, value: model.new_sequence().append(value),
    "set_prompt": lambda model, value: model.new_sequence().set_prompt(value),
    "truncate": lambda model, value: model.new_sequence().truncate(value),
    "copy_prefix": lambda model, value: model.new_sequence().copy_prefix(value),
    "advance": lambda model, value: model.new_sequence().advance(value),
    "run_until_exit": lambda model, value: model.new_sequence().run_until_exit(value),
    "decode": lambda model, value: model.tokenizer.decode(value),
    "token_id": lambda model, value: model.tokenizer.token_id(value),
    "cache": lambda model, value: ouro_edge.PrefixCache(value, 1),
    "checkout": lambda model, value: ouro_edge.PrefixCache(model, 1).checkout(value),
    "checkin": lambda model, value: ouro_edge.PrefixCache(model, 1).checkin(value),
    "save_sequence": lambda model, value: ouro_edge.save_sequence(value, "unused"),
    "save_path": lambda model, value: ouro_edge.save_sequence(model.new_sequence(), value),
    "load_sequence": lambda model, value: ouro_edge.load_sequence(value, "unused"),
    "load_path": lambda model, value: ouro_edge.load_sequence(model, value),
    "answers": lambda model, value: MockModel(value),
    "depths": lambda model, value: MockModel(depths=value),
}
ODD = {
    **dict.fromkeys(("score", "forward", "ascore", "append", "set_prompt", "checkout"), NO_IDS),
    **dict.fromkeys(("truncate", "advance"), NO_NUMBER),
    "copy_prefix": NO_NUMBER[1:],  # None is the whole
    "generate": (*NO_IDS[:3], *NO_IDS[4:]),
    "embed": (5, 1.5, b"x", {"a": 1}, [5], [None], [b"x"], [[1.5]], [{}]),
    "stop_ids": (5, "x", b"x", {"a": 1}, [None]),
    "load": (5, 1.5, b"x", [], "\ud800", "a\0b"),
    "chat": ("x", 5, None, {}, ["x"], [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}]),
    "render": ("x", 5, None, {}, ["x"], [{"content": "x"}], [{"role": "user", "content": [5]}]),
    "template": (5, "x", [1], {5: 1}, {"messages": []}, {"self": 1}),
    "stop": (5, 1.5, True, b"x", {"a": 1}, [5], np.ones(2, int)),
    "speculate": (1, None, "yes", [], np.ones(2)),
    "logits": (5, None, [], "x", np.ones(3, np.float32), np.ones((0, 128), np.float32)),
    "decode": (5, None, b"x", "x", [None], ["x"], [-1]),
    "token_id": (5, None, b"x", []),
    "save_path": ("", "a\0b", "\ud800", 5, None),
    "load_path": ("", "a\0b", "\ud800", 5, None),
    "answers": (5, None, [5], [], {}, b"x"),
    "depths": (5, None, ["x"], [1.5], [0], [9], []),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with ouro_edge.load(threads=1) as model:
        yield model


@pytest.mark.parametrize(("call", "value"), [(c, v) for c in CALLS for v in ODD.get(c, (5, 1.5, "x", [], object()))])
def test_refused_in_one_line(model, call, value):
    with pytest.raises(OuroEdgeError) as refused:
        CALLS[call](model, value)
    assert "\n" not in str(refused.value)
    assert call == "load" or isinstance(refused.value, RequestError)


@pytest.mark.parametrize("call", ["generate", "score", "forward"])
def test_ids_may_come_as_numbers_of_numpy_or_one_by_one(model, call):
    def depths(ids):
        result = getattr(model, call)(ids)
        return [token.depth for token in list(result)[:-1]] if call == "generate" else list(result.depth)

    assert depths([5, 6]) == depths(np.array([5, 6])) == depths(iter((5, 6)))


def test_what_was_found_is_shown_shortly(model):
    for value in (list(range(10**6, 10**6 + 1000)), {"x" * 10_000: 1}, np.ones((50, 50))):
        with pytest.raises(RequestError) as refused:
            model.score(value)
        assert len(str(refused.value)) < 200
