"""Public names of version 0.1 work for one release and name their successors."""

from __future__ import annotations

import pytest

import ouro_edge


def test_old_methods_call_the_new_ones(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        sequence, cache = model.new_sequence(), ouro_edge.PrefixCache(model, 1 << 20)
        with pytest.deprecated_call(match="TokenSequence.feed is now append"):
            sequence.feed([5, 6, 7])
        with pytest.deprecated_call(match="rewind is now truncate"):
            sequence.rewind(2)
        with pytest.deprecated_call(match="resume is now set_prompt"):
            assert sequence.resume([5, 6, 8]) == 0
        with pytest.deprecated_call(match="fork is now copy_prefix"):
            assert sequence.fork(2).tokens == [5, 6]
        with pytest.deprecated_call(match="PrefixCache.give is now checkin"):
            cache.give(sequence)
        with pytest.deprecated_call(match="take is now checkout"):
            cache.take([1])


def test_old_classes_and_options(bundle_of):
    for old, new in (("Confidence", "ConfidenceThreshold"), ("LowEntropy", "EntropyThreshold")):
        with pytest.deprecated_call(match=f"ouro_edge.{old} is now ouro_edge.{new}"):
            assert getattr(ouro_edge, old) is getattr(ouro_edge, new)
    with pytest.deprecated_call(match="WeightedExit"):
        assert ouro_edge.WeightedExit is ouro_edge.ExpectedLogits
    with ouro_edge.load(bundle_of()) as model:
        with pytest.deprecated_call(match="lens is now logit_lens"):
            token, _ = model.generate([5], max_tokens=1, lens=2)
        with pytest.deprecated_call(match=r"Token.lens is now Token.logit_lens"):
            assert token.lens == token.logit_lens and len(token.logit_lens[0]) == 2
