"""Scores and embeddings against the plain forward pass, and what they hold in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from metered import metered

import ouro_edge
from ouro_edge.errors import ContextOverflowError, NoTokenizerError, RequestError
from ouro_edge.runtime import forward, forward_model

IDS = [int(i) for i in np.random.default_rng(4).integers(3, 96, 40)]


@pytest.fixture(scope="module")
def model(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        yield loaded


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("policy", [ouro_edge.FixedDepth(2), ouro_edge.ExitThreshold(0.5), ouro_edge.Agreement()])
def test_scores_are_those_of_the_forward_pass(model, policy):
    wanted = model.forward(IDS, exit=policy)
    logs = log_softmax(wanted.logits)
    score = model.score(IDS, exit=policy, top=3)
    assert score.logprobs == pytest.approx([logs[t, IDS[t + 1]] for t in range(39)], abs=1e-4)
    assert score.depth.tolist() == wanted.depth[:-1].tolist()
    for t, top in enumerate(score.top):
        best = np.argsort(-logs[t], kind="stable")[:3]
        assert [i for i, _ in top] == best.tolist()
        assert [lp for _, lp in top] == pytest.approx(logs[t, best], abs=1e-4)


POLICIES = [ouro_edge.ExitThreshold(0.3), ouro_edge.ExitThreshold(0.6), ouro_edge.StateChange(0.7),
            ouro_edge.Agreement(), ouro_edge.EntropyThreshold(4.0)]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 7, 16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_calls_of_any_size_say_the_same(model, monkeypatch, policy, rows):
    """Deeper loops end earlier, so that their calls may begin elsewhere than those of the loops before."""
    for count in range(17, 41, 3):
        monkeypatch.setattr(model.backend, "rows_per_call", 64)
        wanted = model.forward(IDS[:count], exit=policy)
        monkeypatch.setattr(model.backend, "rows_per_call", rows)
        found = model.forward(IDS[:count], exit=policy)
        assert found.depth.tolist() == wanted.depth.tolist()
        np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4)
        np.testing.assert_allclose(found.exit_probs, wanted.exit_probs, atol=1e-4)


def test_these_policies_stop_early_and_not_everywhere_at_once(model):
    assert all(len(set(model.forward(IDS, exit=policy).depth.tolist())) > 1 for policy in POLICIES)


def test_cancelled_within_a_loop_a_shared_cache_holds_nothing_mixed(bundle_of):
    cancel, calls = ouro_edge.Cancel(), itertools.count(1)

    def count(_rows):
        if next(calls) == 5:  # the second of loop 2's three
            cancel.cancel()

    with ouro_edge.load(bundle_of(), kv_share="last") as loaded:
        loaded.backend.rows_per_call = 16
        shared, _ = metered(loaded, before=count)
        sequence = shared.new_sequence()
        with pytest.raises(ouro_edge.Cancelled):
            shared.score(IDS, sequence=sequence, cancel=cancel, exit=ouro_edge.FullDepth())
        answers = []
        for each in (sequence, shared.new_sequence()):
            *tokens, _ = shared.generate(IDS, sequence=each, max_tokens=5, stop_ids=())
            answers.append([(token.id, token.logprob) for token in tokens])
        assert answers[0] == answers[1]


def test_no_more_than_some_rows_of_logits_are_alive(model, monkeypatch):
    monkeypatch.setattr(forward, "HEAD_ROWS", 8)
    monkeypatch.setattr(forward_model, "HEAD_ROWS", 8)
    watched, meter = metered(model)
    watched.score(IDS, top=1)
    assert meter.head_rows == [8, 8, 8, 8, 7]


def test_a_scored_sequence_goes_on_without_computing_again(model):
    sequence = model.new_sequence()
    model.score(IDS, sequence=sequence)
    *tokens, done = model.generate(IDS, max_tokens=3, stop_ids=(), sequence=sequence)
    assert done.usage.cached_tokens == len(IDS) - 2
    assert [t.id for t in tokens] == [
        t.id for t in model.generate(IDS, max_tokens=3, stop_ids=()) if isinstance(t, ouro_edge.Token)
    ]
    again = model.score(IDS, sequence=sequence)
    assert again.logprobs == pytest.approx(model.score(IDS).logprobs, abs=1e-5)


def test_one_token_is_predicted_by_nothing(model):
    score = model.score([7], top=2)
    assert (len(score.logprobs), score.top, len(score.depth)) == (0, (), 0)


@pytest.mark.parametrize(
    ("ids", "options", "error", "says"),
    [
        ([], {}, RequestError, "at least one token"),
        ([96 * 4], {}, RequestError, "384"),
        ([1] * 513, {}, ContextOverflowError, "512"),
        ([1, 2], {"top": -1}, RequestError, "top is -1"),
        ([1, 2], {"top": 10**6}, RequestError, "size of the vocabulary"),
        ([1, 2], {"exit": 0.5}, RequestError, "exit is 0.5"),
    ],
)
def test_bad_scores_are_refused(model, ids, options, error, says):
    with pytest.raises(error, match=says):
        model.score(ids, **options)


def test_embeddings_are_means_of_normed_states(model):
    texts = [[5, 17, 3], IDS]
    vectors = model.embed(texts, exit=ouro_edge.FixedDepth(3))
    assert vectors.shape == (2, model.config.hidden_size) and vectors.dtype == np.float32
    for vector, ids in zip(vectors, texts, strict=True):
        mean = model.forward(ids, exit=ouro_edge.FixedDepth(3)).hidden.mean(axis=0)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert model.embed([]).shape == (0, model.config.hidden_size)


def test_text_is_embedded_like_its_tokens():
    with ouro_edge.load() as model:
        text = "Ada likes Ben."
        assert (model.embed(text) == model.embed([model.tokenizer.encode(text)])).all()
        near, far = model.embed(["Ada likes Cleo.", "3 + 4 = ?"]) @ model.embed(text)[0]
        assert near > far


def test_embedding_needs_tokens(model):
    with pytest.raises(NoTokenizerError):
        model.embed("text")
    with pytest.raises(RequestError, match="at least one token"):
        model.embed([[]])
    with pytest.raises(RequestError, match="a text is 3"):
        model.embed([3])


def test_a_cancelled_pass_says_so(model):
    cancel = ouro_edge.Cancel()
    cancel.cancel()
    for call in (model.forward, model.score, lambda ids, cancel: model.embed([ids], cancel=cancel)):
        with pytest.raises(ouro_edge.Cancelled):
            call(IDS, cancel=cancel)
