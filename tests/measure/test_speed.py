"""What is timed is what was asked for: counts, bytes and contexts are checked, times are not."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

import ouro_edge
from ouro_edge.arch.weights import tensor_shapes
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.measure.context import filled_sequence
from ouro_edge.measure.speed import End, Loading, Plan, Speed, check_plan, time_model, weight_bytes
from ouro_edge.runtime.exits.policies import FixedDepth


def speeds_of(path, plan):
    return {str(e.test): e for e in time_model(path, "fp32", 1, "lean", plan) if isinstance(e, Speed)}


@pytest.mark.parametrize("kv", ["fp32", "int8", "int4"])
def test_a_filled_sequence_can_be_continued_at_any_depth(kv):
    with ouro_edge.load(kv=kv) as model:
        sequence = filled_sequence(model, 40, 2, 5, np.random.default_rng(0))
        assert sequence.frontier == [40, 40, 40, 0, 0]
        held = [sequence.kv_of(loop).nbytes for loop in (1, 2, 3)]
        assert held[0] == held[1] > held[2] == 0
        for depth in (1, 2, 4):
            sequence.truncate(40)
            sequence.append([3])
            assert np.isfinite(sequence.run_until_exit(FixedDepth(depth)).logits).all()
        assert sequence.work.rows == 1 + 2 + 2 + 41 + 41  # only depth 4 computes what was waiting for loops 3 and 4
        assert all(np.unique(array[:, :40]).size > 8 for array in sequence.kv_of(2).valid(41))


def test_counts_and_bytes_are_those_of_the_test(checkpoint_of, bundle_of):
    path = bundle_of(checkpoint_of())
    plan = Plan(prompts=(6,), tokens=(3,), depths=(1, 3), contexts=(0, 20), repeats=2)
    speeds = speeds_of(path, plan)
    assert list(speeds) == [
        f"{test}{after}, depth {depth}"
        for after in ("", " after 20")
        for test in ("prefill 6", "decode 3")
        for depth in (1, 3)
    ]
    prefill = speeds["prefill 6 after 20, depth 3"]
    assert (prefill.loops_run, prefill.block_calls, prefill.bytes_read, prefill.bandwidth) == (18, 3, None, None)
    decode = speeds["decode 3 after 20, depth 3"]
    assert (decode.loops_run, decode.block_calls, len(decode.seconds)) == (
        12,
        9,
        2,
    )  # the context's last token is computed again
    config = open_bundle(path).config
    block, head = weight_bytes(open_bundle(path))
    position = config.num_layers * 2 * config.num_kv_heads * config.head_dim * 4
    assert config.head_dim % 16 == 0
    assert decode.bytes_read == 9 * block + 3 * head + 3 * (21 + 22 + 23) * position
    assert decode.rates == tuple(3 / s for s in decode.seconds)


def test_weights_of_block_and_head_are_all_but_the_embedding(checkpoint_of, bundle_of):
    for tied in (False, True):
        bundle = open_bundle(bundle_of(checkpoint_of(tie_word_embeddings=tied)))
        sizes = {name: 4 * prod(shape) for name, shape in tensor_shapes(bundle.config).items()}
        block = sum(size for name, size in sizes.items() if name not in ("embedding", "head"))
        assert weight_bytes(bundle) == (block, sizes["embedding"])


def test_events_come_in_order():
    events = list(time_model(ouro_edge.loading.default_model(), "auto", 1, "auto", Plan((4,), (2,), (1,), (0,), 1)))
    assert [type(e) for e in events if not isinstance(e, str)] == [Loading, Speed, Speed, End]
    loading, end = events[1], events[-1]
    assert loading.kv == "fp32" and loading.load > 0 and loading.first_token > 0
    assert end.memory.peak >= loading.memory.resident and 0 <= end.idle_cpu < 0.5


def test_what_the_model_cannot_do_is_refused(checkpoint_of, bundle_of):
    bundle = open_bundle(bundle_of(checkpoint_of()))
    most = bundle.config.max_positions
    assert check_plan(bundle, Plan((4,), (2,), (), (0, most - 4), 1)) == ((1, 2, 3, 4), 4)
    with pytest.raises(RequestError, match="1 to 4 loops"):
        check_plan(bundle, Plan((4,), (2,), (5,), (0,), 1))
    with pytest.raises(ContextOverflowError, match="do not fit"):
        check_plan(bundle, Plan((4,), (2,), (), (most - 3,), 1))


def test_a_gguf_file_is_timed_too(checkpoint_of, tmp_path):
    checkpoint = checkpoint_of(hidden_size=64, intermediate_size=96)
    file = ouro_edge.export(checkpoint, tmp_path / "model.gguf", precision="q4_0")
    assert set(speeds_of(file.path, Plan((4,), (2,), (1,), (0,), 1)))
