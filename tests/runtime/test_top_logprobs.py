"""What a token says of the others: candidates at its depth, what every loop would have said, and constraints."""

from __future__ import annotations

import math

import numpy as np
import pytest
from metered import metered

import ouro_edge
from ouro_edge.errors import RequestError

PROMPT = [5, 17, 3]


@pytest.fixture(scope="module")
def model(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        yield loaded


def tokens_of(events):
    return [event for event in events if isinstance(event, ouro_edge.Token)]


def test_candidates_cost_nothing_unless_asked_for(model):
    [token] = tokens_of(model.generate(PROMPT, max_tokens=1, stop_ids=()))
    assert token.top_logprobs == () and token.logit_lens == ()


def test_the_likeliest_at_the_exit_depth(model):
    policy = ouro_edge.FixedDepth(3)
    sampler = ouro_edge.Sampler(temperature=2.0, top_k=2, logit_bias={9: 50.0}, seed=1)
    [token] = tokens_of(model.generate(PROMPT, max_tokens=1, stop_ids=(), exit=policy, top_logprobs=5, sampler=sampler))
    logits = model.forward(PROMPT, exit=policy).logits[-1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum())
    best = np.argsort(-logs, kind="stable")[:5]
    assert token.id == 9  # the sampler's bias counts for the choice, not for the report
    assert token.logprob == pytest.approx(logs[9], abs=1e-4)
    assert [i for i, _ in token.top_logprobs] == best.tolist()
    assert [lp for _, lp in token.top_logprobs] == pytest.approx(logs[best], abs=1e-4)


def test_the_lens_is_the_forward_pass_at_every_depth(model):
    [token] = tokens_of(
        model.generate(PROMPT, max_tokens=1, stop_ids=(), exit=ouro_edge.FixedDepth(3), logit_lens=2, top_logprobs=2)
    )
    assert len(token.logit_lens) == token.depth == 3
    for loop, candidates in enumerate(token.logit_lens, start=1):
        logits = model.forward(PROMPT, exit=ouro_edge.FixedDepth(loop)).logits[-1].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-probabilities, kind="stable")[:2]
        assert [i for i, _ in candidates] == best.tolist()
        assert [p for _, p in candidates] == pytest.approx(probabilities[best], abs=1e-4)
    assert dict(token.logit_lens[-1]) == pytest.approx({i: math.exp(logprob) for i, logprob in token.top_logprobs})


def test_the_lens_costs_one_head_call_per_loop(model):
    watched, meter = metered(model)
    for lens, exit, wanted in ((0, ouro_edge.FixedDepth(3), 1), (1, ouro_edge.FixedDepth(3), 3)):
        meter.head_rows.clear()
        tokens_of(watched.generate(PROMPT, max_tokens=1, stop_ids=(), exit=exit, logit_lens=lens))
        assert len(meter.head_rows) == wanted


@pytest.mark.parametrize("value", [-1, 1.0, True, "3", 385])
@pytest.mark.parametrize("name", ["top_logprobs", "logit_lens"])
def test_a_strange_number_of_candidates_is_refused(model, name, value):
    with pytest.raises(RequestError, match=name):
        model.generate(PROMPT, **{name: value})


class Only:
    """Allows one list of ids after the other."""

    def __init__(self, *steps, done_after=None):
        self.steps, self.accepted, self.done_after = steps, [], done_after

    def mask(self, logits):
        allowed = self.steps[len(self.accepted)]
        keep = logits[allowed].copy()
        logits[:] = -np.inf
        logits[allowed] = keep

    def accept(self, token):
        self.accepted.append(token)

    @property
    def done(self):
        return len(self.accepted) == self.done_after


@pytest.mark.parametrize("sampler", [ouro_edge.Sampler(), ouro_edge.Sampler(temperature=1.0, top_p=0.9, seed=2),
                                     ouro_edge.Sampler(repetition_penalty=1.3)])  # fmt: skip
def test_a_constraint_decides_what_may_come(model, sampler):
    only = Only([40], [41, 42], [43], [2])
    *tokens, done = model.generate(PROMPT, stop_ids=[2], constraint=only, sampler=sampler)
    ids = [t.id for t in tokens]
    assert ids == only.accepted and ids[0] == 40 and ids[1] in (41, 42) and ids[2:] == [43, 2]
    assert done.reason == "stop"
    logits = model.forward(PROMPT).logits[-1].astype(np.float64)
    assert tokens[0].logprob == pytest.approx(logits[40] - np.log(np.exp(logits).sum()), abs=1e-4)


def test_a_constraint_that_is_done_ends_the_answer(model):
    *tokens, done = model.generate(PROMPT, stop_ids=(), constraint=Only([40], [41], done_after=2))
    assert [t.id for t in tokens] == [40, 41] and done.reason == "stop"


def test_a_constraint_that_allows_nothing_is_an_error(model):
    with pytest.raises(RequestError, match="allows no token"):
        list(model.generate(PROMPT, constraint=Only([])))


def test_what_is_no_constraint_is_refused(model):
    with pytest.raises(RequestError, match="Constraint"):
        model.generate(PROMPT, constraint={"type": "object"})
