"""Generation as a user calls it: arguments, stops, cancellation, context, events."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.errors import (
    BundleError,
    ContextOverflowError,
    NoGateError,
    NoTokenizerError,
    RequestError,
    TemplateError,
)

PROMPT = [5, 17, 3]


@pytest.fixture(scope="module")
def model(bundle_of):
    with ouro_edge.load(bundle_of()) as loaded:
        yield loaded


def ids_of(events):
    return [event.id for event in events if isinstance(event, ouro_edge.Token)]


def test_events_are_tokens_and_then_one_done(model):
    *tokens, done = model.generate(PROMPT, max_tokens=5, stop_ids=(), exit=ouro_edge.FixedDepth(2))
    assert len(tokens) == 5
    assert all(isinstance(t, ouro_edge.Token) and t.depth == 2 and len(t.exit_probs) == 2 for t in tokens)
    assert all(t.logprob <= 0 and t.text == "" for t in tokens)
    assert isinstance(done, ouro_edge.Done) and done.reason == "length"
    usage = done.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 5, 0)
    assert (usage.loops_run, usage.loops_full, usage.loops_saved, usage.mean_depth) == (14, 28, 14, 2.0)
    assert 0 < done.timings.first_token <= done.timings.total


def test_logprob_is_that_of_the_forward_pass(model):
    token = next(iter(model.generate(PROMPT, max_tokens=1, stop_ids=())))
    logits = model.forward(PROMPT).logits[-1].astype(np.float64)
    assert token.id == logits.argmax()
    assert token.logprob == pytest.approx(logits.max() - np.log(np.exp(logits).sum()), abs=1e-4)


def test_stop_ids_end_an_answer_and_are_reported(model):
    free = ids_of(model.generate(PROMPT, max_tokens=12, stop_ids=()))
    stop = free[4]
    *tokens, done = model.generate(PROMPT, max_tokens=12, stop_ids=[stop])
    assert [t.id for t in tokens] == free[: free.index(stop) + 1]
    assert done.reason == "stop"


def test_ouro_stops_on_0_and_2_whatever_the_config_says(checkpoint_of, bundle_of):
    with ouro_edge.load(bundle_of(checkpoint_of(eos_token_id=7))) as model:
        assert model.stop_ids == (0, 2, 7)
    with ouro_edge.load(bundle_of(checkpoint_of(model_type="llama", eos_token_id=7))) as model:
        assert model.stop_ids == (7,)


def test_seeded_sampling_repeats(model):
    sampler = ouro_edge.Sampler(temperature=1.5, seed=11)
    first, second = (ids_of(model.generate(PROMPT, max_tokens=20, sampler=sampler, stop_ids=())) for _ in range(2))
    assert first == second
    other = ouro_edge.Sampler(temperature=1.5, seed=12)
    assert first != ids_of(model.generate(PROMPT, max_tokens=20, sampler=other, stop_ids=()))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"prompt": []}, RequestError, "at least one token"),
        ({"prompt": [384]}, RequestError, "384"),
        ({"prompt": [-1]}, RequestError, "-1"),
        ({"prompt": [1.5]}, RequestError, "1.5"),
        ({"prompt": "text"}, NoTokenizerError, "token ids"),
        ({"prompt": [1], "stop": "x"}, NoTokenizerError, "stop_ids"),
        ({"prompt": [1], "max_tokens": 0}, RequestError, "max_tokens"),
        ({"prompt": [1] * 513}, ContextOverflowError, "512"),
        ({"prompt": [1] * 500, "max_tokens": 14}, ContextOverflowError, "at most 13"),
        ({"prompt": [1], "exit": ouro_edge.FixedDepth(5)}, RequestError, "1 to 4"),
        ({"prompt": [1], "exit": ouro_edge.ExitThreshold(0.5, floor=5)}, RequestError, "floor"),
        ({"prompt": [1], "stop_ids": [999]}, RequestError, "999"),
    ],
)
def test_bad_requests_are_refused_at_once(model, arguments, error, says):
    with pytest.raises(error, match=says):
        model.generate(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ouro_edge.ExitThreshold(1.5),
        lambda: ouro_edge.ExitThreshold(float("nan")),
        lambda: ouro_edge.ExitThreshold("0.5"),
        lambda: ouro_edge.ExitThreshold(0.5, floor=0),
        lambda: ouro_edge.ExitThreshold(0.5, floor=3, ceiling=2),
        lambda: ouro_edge.FixedDepth(0),
        lambda: ouro_edge.FixedDepth(True),
    ],
)
def test_bad_policies_are_refused(make):
    with pytest.raises(RequestError):
        make()


def test_floor_and_ceiling_bound_the_threshold(model):
    ids = list(range(3, 40))
    free = model.forward(ids, exit=ouro_edge.ExitThreshold(0.4)).depth
    bound = model.forward(ids, exit=ouro_edge.ExitThreshold(0.4, floor=2, ceiling=3)).depth
    assert free.min() == 1 and free.max() == 4
    assert bound.tolist() == np.clip(free, 2, 3).tolist()


def test_a_model_without_gate_refuses_a_threshold(checkpoint_of, bundle_of):
    with ouro_edge.load(bundle_of(checkpoint_of(model_type="llama"))) as model:
        with pytest.raises(NoGateError, match="no exit gate"):
            model.generate(PROMPT, exit=ouro_edge.ExitThreshold(0.5))
        assert len(ids_of(model.generate(PROMPT, max_tokens=3, stop_ids=()))) == 3
        assert model.forward(PROMPT).depth.tolist() == [1, 1, 1]


def test_the_context_can_be_filled_to_the_brim(model):
    *tokens, done = model.generate([1] * 509, stop_ids=())
    assert len(tokens) == 4 and done.reason == "length"


def test_chat_without_a_template_is_refused(model):
    with pytest.raises(TemplateError, match="no chat template"):
        model.chat([{"role": "user", "content": "hi"}])


def test_a_closed_model_says_so(bundle_of):
    model = ouro_edge.load(bundle_of())
    model.close()
    with pytest.raises(RequestError, match="closed"):
        model.generate(PROMPT)


def test_cancel_from_another_thread_stops_within_a_call(model):
    cancel = ouro_edge.Cancel()
    seen = []
    for event in model.generate(PROMPT, stop_ids=(), cancel=cancel):
        seen.append(event)
        if len(seen) == 3:
            thread = threading.Thread(target=cancel.cancel)
            thread.start()
            thread.join()
    assert seen[-1].reason == "cancelled"
    assert len(seen) == 4  # three tokens, and Done: nothing was made after the switch


def test_cancel_during_a_long_prompt_leaves_a_usable_sequence(bundle_of, checkpoint_of):
    checkpoint = checkpoint_of(hidden_size=256, intermediate_size=1024, max_position_embeddings=4096)
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        ids = np.random.default_rng(0).integers(3, 96, 3000).tolist()
        cancel, sequence = ouro_edge.Cancel(), model.new_sequence()
        threading.Timer(0.05, cancel.cancel).start()
        events = list(model.generate(ids, max_tokens=1, cancel=cancel, sequence=sequence, stop_ids=()))
        assert [event.reason for event in events if isinstance(event, ouro_edge.Done)] == ["cancelled"]
        computed = list(sequence.frontier[1:])
        assert computed[-1] < len(ids)
        resumed = list(model.generate(ids, max_tokens=2, sequence=sequence, stop_ids=()))
        assert resumed[-1].usage.cached_tokens == min(computed[0], len(ids) - 2)
        fresh = list(model.generate(ids, max_tokens=2, stop_ids=()))
        assert ids_of(resumed) == ids_of(fresh)


def test_threads_share_a_model(model):
    prompts = [[i, i + 1, i + 2] for i in range(3, 11)]
    wanted = [ids_of(model.generate(p, max_tokens=10, stop_ids=())) for p in prompts]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = ids_of(model.generate(prompts[i], max_tokens=10, stop_ids=()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == wanted


def test_the_threads_of_an_idle_model_do_not_spin(bundle_of, monkeypatch):
    """Spinning threads take a whole CPU each between calls; this option stops them when a call returns."""
    opened = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self.get_session_options().get_session_config_entry("session.force_spinning_stop"))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    with ouro_edge.load(bundle_of(GOLDEN), threads=2) as model:
        list(model.generate(PROMPT, max_tokens=8, stop_ids=()))
    assert len(opened) >= 2 and set(opened) == {"1"}  # the block and the head


def test_threads_must_be_a_number(bundle_of):
    with pytest.raises(RequestError, match="threads"):
        ouro_edge.load(bundle_of(GOLDEN), threads=0)


def test_a_sequence_of_another_model_is_refused(model, checkpoint_of, bundle_of):
    with ouro_edge.load(bundle_of(checkpoint_of())) as other, pytest.raises(RequestError, match="another model"):
        other.generate(PROMPT, sequence=model.new_sequence())


def test_a_generation_notices_that_its_sequence_was_taken_over(model):
    sequence = model.new_sequence()
    first = model.generate(PROMPT, stop_ids=(), sequence=sequence)
    next(first)
    list(model.generate([9, 8, 7], max_tokens=2, stop_ids=(), sequence=sequence))
    with pytest.raises(RequestError, match="another generation"):
        next(first)


def test_loops_saved_are_those_of_the_request_and_negative_where_it_catches_up(model):
    sequence = model.new_sequence()
    *shallow, done = model.generate(
        PROMPT * 5, max_tokens=3, exit=ouro_edge.FixedDepth(1), stop_ids=(), sequence=sequence
    )
    assert (done.usage.loops_run, done.usage.loops_saved) == (17, 17 * 3)
    history = PROMPT * 5 + [token.id for token in shallow]
    *_, done = model.generate(history, max_tokens=1, stop_ids=(), sequence=sequence)
    assert (done.usage.loops_saved, done.usage.loops_run) == (-16 * 3, 16 * 3 + 2 * 4)  # the last two are new
    cancel = ouro_edge.Cancel()
    cancel.cancel()
    *_, done = model.generate([4] * 9, cancel=cancel)
    assert (done.reason, done.usage.loops_run, done.usage.loops_saved) == ("cancelled", 0, 0)
    with pytest.raises(ouro_edge.Cancelled):
        model.forward(PROMPT, cancel=cancel)


@pytest.mark.parametrize(
    "arguments",
    [{"prompt": None}, {"exit": 0.7}, {"sampler": {}}, {"stop_ids": 2}, {"cancel": True}, {"max_tokens": True}],
)
def test_arguments_of_a_wrong_kind_are_refused(model, arguments):
    with pytest.raises(RequestError):
        model.generate(**{"prompt": PROMPT, **arguments})


def test_numpy_numbers_are_numbers(model):
    policy = ouro_edge.ExitThreshold(np.float32(0.5))
    assert len(list(model.generate(np.array(PROMPT), max_tokens=np.int64(2), exit=policy, stop_ids=()))) == 3


def with_generation(model, settings):
    """The same model with another generation_config.json."""
    return ouro_edge.Model(model.backend, replace(model.text, generation=settings))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ouro_edge.Sampler()),
        (
            {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1},
            ouro_edge.Sampler(repetition_penalty=1.1),
        ),
        ({"do_sample": True}, ouro_edge.Sampler(temperature=1.0)),
        ({"do_sample": True, "top_k": 50.0, "top_p": 0.7}, ouro_edge.Sampler(temperature=1.0, top_k=50, top_p=0.7)),
        ({"do_sample": True, "top_k": -1, "top_p": "x"}, ouro_edge.Sampler(temperature=1.0)),
        ({"do_sample": "false", "temperature": 2}, ouro_edge.Sampler()),
    ],
)
def test_generation_config_is_read_like_hugging_face(model, settings, wanted):
    model = with_generation(model, settings)
    assert model.default_sampler() == wanted


def test_a_generation_config_that_makes_no_sense_is_named_and_can_be_overridden(model):
    model = with_generation(model, {"do_sample": True, "top_p": 7})
    with pytest.raises(BundleError, match=r"generation_config\.json.*top_p"):
        model.default_sampler()
    assert model.default_sampler(top_p=0.5).top_p == 0.5
    with pytest.raises(RequestError, match="temperature"):
        model.default_sampler(temperature=-1)


def test_a_generation_that_was_taken_over_leaves_its_successor_alone(model):
    """The superseded generation must not append its token to what the other one has made of the sequence."""
    expected = [event.id for event in list(model.generate([9, 8, 7], max_tokens=6, stop_ids=()))[:-1]]
    sequence = model.new_sequence()
    first = model.generate(PROMPT, stop_ids=(), sequence=sequence)
    next(first)
    second = model.generate([9, 8, 7], max_tokens=6, stop_ids=(), sequence=sequence)
    found = [next(second).id]
    with pytest.raises(RequestError, match="another generation"):
        next(first)
    found += [event.id for event in list(second)[:-1]]
    assert found == expected
