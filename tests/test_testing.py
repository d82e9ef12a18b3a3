"""The mock stands for a Model: same signatures, same events, no onnxruntime."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys

import pytest

import ouro_edge
from ouro_edge.testing import MockModel

HELLO = [{"role": "user", "content": "hi"}]


def test_it_says_what_it_is_told_to_in_turn():
    model = MockModel(["Hello, wörld! 🎉", "Second."])
    said = [[*model.chat(HELLO)][-1].text for _ in range(3)]
    assert said == ["Hello, wörld! 🎉", "Second.", "Hello, wörld! 🎉"]
    assert model.prompts == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"] * 3


def test_events_are_the_real_ones():
    *tokens, done = MockModel("one two", depths=[1, 3]).generate("x", top_logprobs=1, logit_lens=2)
    assert "".join(t.text for t in tokens) == done.text == "one two" and done.reason == "stop"
    assert [t.depth for t in tokens] == [(1, 3)[i % 2] for i in range(len(tokens))]
    assert all(len(t.exit_probs) == len(t.logit_lens) == t.depth and t.top_logprobs[0][0] == t.id for t in tokens)
    assert done.usage.completion_tokens == len(tokens) and done.usage.loops_saved > 0


def test_options_work_as_on_a_model():
    model = MockModel("one, two, three")
    assert [*model.generate("x", stop=",")][-1].text == "one"
    assert [*model.generate("x", max_tokens=1)][-1].reason == "length"
    assert {t.depth for t in [*model.generate("x", exit=ouro_edge.FixedDepth(4))][:-1]} == {4}
    cancel = ouro_edge.Cancel()
    cancel.cancel()
    assert [e.reason for e in model.generate("x", cancel=cancel)] == ["cancelled"]
    sequence = model.new_sequence()
    for wanted in (0, 1):
        *_, done = model.generate([7, 8, 9], sequence=sequence)
        assert done.usage.cached_tokens == wanted
    with pytest.raises(ouro_edge.RequestError, match="another model"):
        model.generate("x", sequence=MockModel().new_sequence())
    model.close()
    with pytest.raises(ouro_edge.RequestError, match="closed"):
        model.generate("x")


def test_async_forward_score_and_embed_work():
    model = MockModel("yes")

    async def main():
        return [event async for event in model.achat(HELLO)][-1].text, (await model.aembed(["a b", "c"])).shape

    assert asyncio.run(main()) == ("yes", (2, 128))
    assert model.forward([1, 2]).logits.shape == (2, 768)
    assert model.score([1, 2, 3]).logprobs.shape == (2,)


def test_its_sequences_can_be_forked_and_kept():
    model = MockModel("yes")
    cache = ouro_edge.PrefixCache(model, 0)
    sequence = cache.checkout([7, 8, 9])
    *_, done = model.generate([7, 8, 9], sequence=sequence)
    cache.checkin(sequence)
    assert done.text == "yes" and len(cache) == 1
    *_, done = model.generate([7, 8, 9, 9], sequence=sequence.copy_prefix(3), exit=ouro_edge.ExpectedLogits())
    assert (done.text, done.usage.cached_tokens) == ("yes", 2)


def test_it_can_stand_for_a_model():
    assert isinstance(MockModel(), ouro_edge.Model)
    for name, method in inspect.getmembers(ouro_edge.Model, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(method) == inspect.signature(getattr(MockModel, name)), name
    with ouro_edge.load() as model:
        assert set(vars(model)) <= set(vars(MockModel()))  # nothing that a Model sets is missing


@pytest.mark.parametrize("script", [{"answers": []}, {"depths": []}, {"depths": [5]}, {"depths": [0]}])
def test_a_script_that_makes_no_sense_is_refused(script):
    with pytest.raises(ouro_edge.RequestError, match=r"from 1 to 4|at least one"):
        MockModel(**script)


def test_it_needs_no_onnxruntime():
    code = (
        "import sys; from ouro_edge.testing import MockModel; list(MockModel().generate('x'))\n"
        "assert not {'onnx', 'onnxruntime', 'gguf', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
