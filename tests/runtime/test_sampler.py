"""The sampler against slow, plain definitions of its filters, and against the frequencies that it promises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling import distribution

from ouro_edge.errors import RequestError
from ouro_edge.runtime.sampling.sampler import Sampler

Row = NDArray[np.float32]


def row(*values: float) -> Row:
    logits: Row = np.array(values, np.float32)
    return logits


def logs(*probabilities: float) -> Row:
    with np.errstate(divide="ignore"):
        return row(*np.log(np.array(probabilities)))


def softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    e = np.exp(x.astype(np.float64) - x.max())
    return np.asarray(e / e.sum())


def oracle(logits: Row, seen: set[int], s: Sampler) -> NDArray[np.float64]:
    """The filters one token at a time, with full sorts and a softmax after each."""
    x = [float(v) for v in logits]
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token in seen:
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    if s.temperature == 0:
        return np.asarray(np.eye(len(x))[x.index(max(x))], np.float64)
    p = softmax(np.array(x) / s.temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        mass, kept, total = 0.0, [], sum(p[i] for i in order)
        for i in order:
            kept.append(i)
            mass += p[i] / total
            if mass >= s.top_p:
                break
        order = kept
    order = [i for i in order if p[i] >= s.min_p * p[order[0]]]
    out = np.zeros(len(p))
    out[order] = p[order]
    return np.asarray(out / out.sum())


def test_default_is_greedy_and_reports_the_models_logprob() -> None:
    logits = row(1, 3, 2, -math.inf)
    token, logprob = Sampler().start().pick(logits)
    assert token == 1
    assert logprob == pytest.approx(math.log(softmax(logits)[1]), abs=1e-6)


def test_ties_go_to_the_lowest_id() -> None:
    logits = row(0, 5, 5, 5, 1)
    assert Sampler().start().pick(logits)[0] == 1
    assert np.flatnonzero(distribution(Sampler(temperature=1, top_k=2).start(), logits)).tolist() == [1, 2]
    assert np.flatnonzero(distribution(Sampler(temperature=1, top_p=0.4).start(), logits)).tolist() == [1, 2]


def test_many_ties_go_to_the_lowest_ids_too() -> None:
    logits = row(*(3.0 * (i % 3 == 0) for i in range(900)))
    found = distribution(Sampler(temperature=1, top_k=400, top_p=0.5).start(), logits)
    assert np.flatnonzero(found).tolist() == [3 * i for i in range(153)]  # half of 300 e^3 + 100


def test_logprob_ignores_everything_but_the_model() -> None:
    logits = row(2, 1, 0)
    sampler = Sampler(temperature=0.1, logit_bias={2: 50.0, 0: -50.0}, top_k=1)
    token, logprob = sampler.start().pick(logits)
    assert token == 2
    assert logprob == pytest.approx(math.log(softmax(logits)[2]), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"min_p": 0.25}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.62}, [1, 0, 0, 0]),  # 0.625 of what top-k left, where 0.5 of all were too little
        ({"top_p": 0.9, "min_p": 0.5}, [0.625, 0.375, 0, 0]),
        ({"logit_bias": {0: -math.inf}}, [0, 0.6, 0.3, 0.1]),
    ],
)
def test_filters_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    found = distribution(Sampler(temperature=1, **options).start(), logs(0.5, 0.3, 0.15, 0.05))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = row(4, 4, -4, -4)
    found = distribution(Sampler(temperature=1, repetition_penalty=2).start(), logits, [0, 2, 0, 2])
    np.testing.assert_allclose(found, softmax(row(2, 4, -8, -4)), rtol=1e-12)
    assert Sampler(repetition_penalty=2).start().pick(logits, {0})[0] == 1


def test_bias_comes_before_the_penalty() -> None:
    found = distribution(Sampler(temperature=1, repetition_penalty=2, logit_bias={0: 3.0}).start(), row(-1, 0), {0})
    np.testing.assert_allclose(found, softmax(row(1, 0)), rtol=1e-12)


def test_temperature_comes_before_the_filters() -> None:
    flat = distribution(Sampler(temperature=100, min_p=0.9).start(), row(5, 0))
    assert np.count_nonzero(flat) == 2


@settings(deadline=None)  # machines may be busy
@given(
    # Distant values, so that no rounding of a softmax decides a tie or a border.
    st.lists(st.integers(-12, 12), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.313, 0.777, 0.9513, 1.0]),
    st.sampled_from([0.0, 0.0123, 0.317, 1.0]),
    st.sampled_from([0.7, 1.0, 1.3]),
    st.booleans(),
)
def test_distribution_matches_the_plain_definition(
    values: list[int], temperature: float, k: int, p: float, low: float, penalty: float, biased: bool
) -> None:
    logits = row(*values)
    seen = set(range(0, len(values), 3))
    sampler = Sampler(
        temperature=temperature,
        top_k=k,
        top_p=p,
        min_p=low,
        repetition_penalty=penalty,
        logit_bias={0: 1.7} if biased else {},
    )
    found = distribution(sampler.start(), logits, seen)
    np.testing.assert_allclose(found, oracle(logits, seen, sampler), atol=1e-9)
    token, logprob = sampler.start().pick(logits, seen)
    assert found[token] > 0
    assert logprob == pytest.approx(math.log(softmax(logits)[token]), abs=1e-4)


def test_large_flat_vocabulary_needs_more_than_one_guess() -> None:
    rng = np.random.default_rng(0)
    logits = rng.permutation(np.linspace(0, 0.5, 9000)).astype(np.float32)
    sampler = Sampler(temperature=1, top_p=0.7)
    np.testing.assert_allclose(distribution(sampler.start(), logits), oracle(logits, set(), sampler), atol=1e-12)


def test_pick_draws_from_the_distribution() -> None:
    logits = np.random.default_rng(1).normal(size=12).astype(np.float32)
    sampling = Sampler(temperature=0.8, top_k=8, top_p=0.95, seed=3).start()
    n = 8_000
    counts = np.bincount([sampling.pick(logits)[0] for _ in range(n)], minlength=12)
    expected = distribution(sampling, logits)
    assert not counts[expected == 0].any()
    kept = expected > 0
    chi2 = float((((counts - n * expected) ** 2)[kept] / (n * expected[kept])).sum())
    assert chi2 < 24.3  # 0.1% of 7 degrees of freedom


def test_seed_makes_answers_repeatable_and_none_does_not() -> None:
    logits = np.zeros(1000, np.float32)

    def draw(seed: int | None) -> list[int]:
        sampling = Sampler(temperature=1, seed=seed).start()
        return [sampling.pick(logits)[0] for _ in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_survivors_draw_nothing() -> None:
    logits = np.zeros(1000, np.float32)
    one, other = Sampler(temperature=1, seed=1).start(), Sampler(temperature=1, seed=1).start()
    one.survivors(logits, ())
    assert one.pick(logits) == other.pick(logits)


@pytest.mark.parametrize("noise", [[0, 0, 0, 0], [0, 40, 40, 0], [1e-300, 0, 40, 0]])
def test_impossible_tokens_are_never_drawn(noise: list[float]) -> None:
    logits = row(-math.inf, 0, 0, -math.inf)
    assert Sampler(temperature=1).start().pick(logits, noise=np.array(noise, float))[0] in (1, 2)


@pytest.mark.parametrize("settings", [{}, {"top_k": 1}, {"top_k": 3}])
def test_every_token_takes_one_draw_so_that_it_may_be_drawn_ahead(settings: dict[str, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    one, other = (Sampler(temperature=1, seed=5, **settings).start() for _ in range(2))
    ahead = [other.draw(20) for _ in logits]
    assert [one.pick(x) for x in logits] == [other.pick(x, noise=n) for x, n in zip(logits, ahead, strict=True)]


def test_the_same_noise_chooses_alike_from_similar_distributions() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=50).astype(np.float32)
    near = (logits + rng.normal(scale=0.2, size=50)).astype(np.float32)
    sampling = Sampler(temperature=1, seed=0).start()
    distance = np.abs(distribution(sampling, logits) - distribution(sampling, near)).sum() / 2
    noises = [sampling.draw(50) for _ in range(2000)]
    alike = np.mean([sampling.pick(logits, noise=n)[0] == sampling.pick(near, noise=n)[0] for n in noises])
    assert alike > (1 - distance) / (1 + distance) - 0.03


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    found = distribution(Sampler(temperature=temperature).start(), row(3e38, -3e38, 3e38))
    assert found.sum() == pytest.approx(1)
    assert found[0] == found[2]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize(
    "logits",
    [row(0, math.nan), row(-math.inf, -math.inf), row(0, math.inf), row(), np.zeros((1, 3), np.float32)],
    ids=["nan", "none", "inf", "empty", "matrix"],
)
def test_damaged_logits_are_refused(options: dict[str, float], logits: Row) -> None:
    sampling = Sampler(**options).start()  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"logit"):
        sampling.pick(logits)


@pytest.mark.parametrize(
    ("options", "seen", "message"),
    [
        ({"logit_bias": {3: 1.0}}, [], "logit_bias has token 3; the vocabulary ends at 2"),
        ({"repetition_penalty": 2.0}, [0, 9], "the ids seen has token 9"),
        ({"repetition_penalty": 2.0}, [-1], "token -1"),
        ({"logit_bias": dict.fromkeys(range(3), -math.inf)}, [], "highest logit is -inf"),
        ({"repetition_penalty": 1e-308}, [0], "highest logit is inf"),
    ],
)
def test_requests_that_cannot_be_done(options: dict[str, Any], seen: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Sampler(**options).start().pick(row(5, 1, 2), seen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("seed", -1),
        ("seed", 1.0),
        ("logit_bias", [1]),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: "x"}),
    ],
)
def test_options_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        Sampler(**{name: value})
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_blueprint_is_frozen_hashable_and_keeps_its_own_bias() -> None:
    bias = {1: 2.0}
    sampler = Sampler(logit_bias=bias)
    bias[1] = -9.0
    assert sampler.logit_bias == {1: 2.0}
    assert sampler == Sampler(logit_bias={1: 2.0})
    assert hash(sampler) == hash(Sampler(logit_bias={1: 2.0}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.temperature = 1.0  # type: ignore[misc]


def test_the_log_probability_under_the_sampling_distribution():
    logits, seen = row(3, 2, 1, 0), {0}
    sampler = Sampler(temperature=0.5, top_k=2, repetition_penalty=2, logit_bias={2: 2.0}, seed=1)
    # Bias 2 lifts the third to 3, the penalty halves the first to 1.5: the third and the second remain.
    weights = np.exp(np.array([3, 2]) / 0.5)
    expected = dict(zip((2, 1), np.log(weights / weights.sum()), strict=True))
    sampling = sampler.start()
    chosen = [sampling.choose(logits, seen) for _ in range(200)]
    assert {choice.id for choice in chosen} == {1, 2}
    for choice in chosen:
        assert choice.sampling_logprob == pytest.approx(expected[choice.id])
        assert choice.logprob == pytest.approx(logits[choice.id] - np.log(np.exp(logits).sum()), abs=1e-5)
    assert Sampler().start().choose(logits).sampling_logprob == 0


def test_samples_have_seeds_of_their_own():
    assert [Sampler(seed=5).for_sample(n).seed for n in range(3)] == [5, 6, 7]
    assert Sampler().for_sample(3).seed is None
