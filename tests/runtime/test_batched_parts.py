"""Batched models: groups alone in a call, and prompts that are computed in parts. Tokens are those of one alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ouro_edge
from ouro_edge.runtime.backend import onnx_backend
from ouro_edge.runtime.backend.batching import prompt_budget
from ouro_edge.runtime.backend.batching.prompt_budget import PromptBudget

RNG = np.random.default_rng(5)
PROMPTS = [[int(i) for i in RNG.integers(3, 96, n)] for n in (90, 2, 60, 1, 75, 3)]


def answer(model, prompt):
    return [event.id for event in list(model.generate(prompt, max_tokens=24, stop_ids=()))[:-1]]


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_a_group_alone_in_a_small_and_in_a_large_model(bundle_of, checkpoint_of, monkeypatch, most):
    """A small model has a session for it; in a large one it is a call of the batched graph with one slot."""
    monkeypatch.setattr(onnx_backend, "MAX_WEIGHTS_OPENED_TWICE", most)
    path = bundle_of(checkpoint_of())
    with ouro_edge.load(path, kv="fp32") as alone, ouro_edge.load(path, kv="fp32", parallel=4) as together:
        backend: Any = together.backend
        assert (backend._single == backend._sessions) == (most == 0)
        states = [model.states(PROMPTS[2]).hidden for model in (alone, together)]
        np.testing.assert_array_equal(states[0], states[1])
        assert answer(together, PROMPTS[0]) == answer(alone, PROMPTS[0])


def test_tokens_do_not_depend_on_how_a_prompt_is_cut(bundle_of, checkpoint_of, monkeypatch):
    for name, value in {"MIN_ROWS": 3, "FIRST_ROWS": 3, "WAIT_SECONDS": 0.0}.items():
        monkeypatch.setattr(prompt_budget, name, value)
    path, shares = bundle_of(checkpoint_of()), []
    share = PromptBudget.share

    def record(self, waiting, alone):
        shares.append(share(self, waiting, alone))
        return shares[-1]

    monkeypatch.setattr(PromptBudget, "share", record)
    with ouro_edge.load(path, kv="fp32") as alone, ouro_edge.load(path, kv="fp32", parallel=8) as together:
        expected = [answer(alone, prompt) for prompt in PROMPTS]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(lambda prompt: answer(together, prompt), PROMPTS)) == expected
    assert any(len(rows) > 1 and 1 < max(rows) <= 3 for rows in shares)


def test_drafts_in_company_change_no_token(bundle_of, checkpoint_of):
    path, drafted = bundle_of(checkpoint_of()), []
    exits = [ouro_edge.FullDepth(), ouro_edge.ExitThreshold(0.5), ouro_edge.FixedDepth(3)]

    def tokens(model, i, speculate):
        sampler = ouro_edge.Sampler(temperature=0.8, seed=i) if i % 2 else ouro_edge.Sampler()
        options = {"max_tokens": 24, "exit": exits[i % 3], "sampler": sampler, "stop_ids": ()}
        *found, done = model.generate(PROMPTS[i], speculate=speculate, **options)
        drafted.append(done.usage.drafted_tokens)
        return [(token.id, token.depth) for token in found]

    with ouro_edge.load(path, kv="fp32") as alone, ouro_edge.load(path, kv="fp32", parallel=4) as together:
        expected = [tokens(alone, i, False) for i in range(len(PROMPTS))]
        assert not any(drafted)
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(lambda i: tokens(together, i, i != 1), range(len(PROMPTS)))) == expected
    assert sum(drafted) > 0
