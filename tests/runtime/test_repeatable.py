"""A repeated request gets the same answer to the last bit, although its prompt is kept from the first time."""

from __future__ import annotations

import numpy as np
import pytest

import ouro_edge
from ouro_edge.runtime.saved.prefix_cache import PrefixCache

PROMPT = np.random.default_rng(5).integers(3, 96, 50).tolist()


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
@pytest.mark.parametrize("length", [2, 3, 20, 50])
def test_repeats_are_equal(bundle_of, checkpoint_of, precision, length):
    path = bundle_of(
        checkpoint_of(hidden_size=64, head_dim=16), precision, block_size=32 if precision != "fp32" else None
    )
    with ouro_edge.load(path, threads=1, kv="fp32", prefill_weights="none") as model:
        cache = PrefixCache(model, 1 << 24)

        def answer(ids):
            sequence = cache.checkout(ids)
            *tokens, done = model.generate(
                ids, max_tokens=12, exit=ouro_edge.FullDepth(), stop_ids=(), sequence=sequence, top_logprobs=3
            )
            cache.checkin(sequence)
            return [(t.id, t.logprob, t.top_logprobs) for t in tokens], done.usage.cached_tokens

        first, again, third = (answer(PROMPT[:length]) for _ in range(3))
        assert first[0] == again[0] == third[0]
        assert (first[1], again[1]) == (0, length - 2)
        other = answer([*PROMPT[: length // 2], 7, 8, 9])  # shares a beginning, and may take the sequence over
        assert other[0] == answer([*PROMPT[: length // 2], 7, 8, 9])[0]
        assert answer(PROMPT[:length])[0] == first[0]
