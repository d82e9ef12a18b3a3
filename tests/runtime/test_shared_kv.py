"""One KV cache for all loops: prompts stay exact, generated tokens follow the rule, memory is a quarter."""

from __future__ import annotations

import numpy as np
import pytest
from models import oracle

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.errors import RequestError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.exits.loop_budget import ExitTracker
from ouro_edge.runtime.exits.policies import ExitThreshold, FixedDepth, FullDepth

PROMPT = [5, 17, 3, 88, 41, 41, 7, 60, 12, 33, 2, 0, 95, 11]


class SharedOracle:
    """The rule in plain NumPy: keys and values of past tokens exist once, those of the deepest loop."""

    def __init__(self, checkpoint):
        opened = open_checkpoint(checkpoint)
        self.config, self.weights = opened.config, dict(opened.weights)
        shape = (self.config.num_layers, 512, self.config.num_kv_heads, self.config.head_dim)
        self.keys, self.values, self.length = np.zeros(shape), np.zeros(shape), 0

    def layer(self, i, h, at):
        config, w = self.config, reference._Layer(self.weights, i)
        tables = [table[at] for table in reference.rope_tables(config, 512)]
        x = reference.rms_norm(h, w["attn_norm"], config.rms_norm_eps)
        split = (len(h), -1, config.head_dim)
        q = reference.rotate((x @ w["q_proj"].T).reshape(split), *tables)
        self.keys[i, at] = reference.rotate((x @ w["k_proj"].T).reshape(split), *tables)
        self.values[i, at] = (x @ w["v_proj"].T).reshape(split)
        mixed = np.zeros_like(q)
        for row, position in enumerate(range(at.start, at.stop)):
            for head in range(config.num_heads):
                group = head * config.num_kv_heads // config.num_heads
                scores = self.keys[i, : position + 1, group] @ q[row, head] * config.head_dim**-0.5
                p = np.exp(scores - scores.max())
                mixed[row, head] = p / p.sum() @ self.values[i, : position + 1, group]
        mixed = mixed.reshape(len(h), -1) @ w["o_proj"].T
        h = h + reference.rms_norm(mixed, w["attn_post_norm"], config.rms_norm_eps)
        mixed = reference.feed_forward(reference.rms_norm(h, w["ffn_norm"], config.rms_norm_eps), w)
        return h + reference.rms_norm(mixed, w["ffn_post_norm"], config.rms_norm_eps)

    def feed(self, ids, depth):
        """Run `depth` loops over new ids; the last state [C] of every loop."""
        at = slice(self.length, self.length + len(ids))
        self.length, states, h = at.stop, [], self.weights["embedding"][np.array(ids)]
        for _ in range(depth):
            for i in range(self.config.num_layers):
                h = self.layer(i, h, at)
            h = reference.rms_norm(h, self.weights["norm"], self.config.rms_norm_eps)
            states.append(h[-1])
        return states


@pytest.fixture(scope="module")
def pair(checkpoint_of, bundle_of):
    """A checkpoint and its float32 model with a shared cache."""
    with ouro_edge.load(bundle_of(checkpoint_of()), kv="fp32", kv_share="last") as model:
        yield checkpoint_of(), model


def test_prompts_are_exact_at_every_depth(pair):
    checkpoint, model = pair
    logits, steps = oracle(checkpoint, PROMPT)
    for depth in range(1, 5):
        sequence = model.new_sequence()
        sequence.append(PROMPT)
        np.testing.assert_allclose(
            sequence.run_until_exit(FixedDepth(depth)).logits[0], logits[depth - 1, -1], atol=1e-3
        )
    for threshold in (0.3, 0.8):
        depths = reference.exit_depths(steps.gate_logits, threshold)
        out = model.forward(PROMPT, exit=ExitThreshold(threshold))
        assert out.depth.tolist() == depths.tolist()
        np.testing.assert_allclose(out.logits, logits[depths - 1, np.arange(len(PROMPT))], atol=1e-3)


def test_generated_tokens_attend_to_the_deepest_states_of_the_past(pair):
    checkpoint, model = pair
    wanted, sequence = SharedOracle(checkpoint), model.new_sequence()
    for ids, depth in ((PROMPT, 4), ([9], 4), ([3], 1), ([8], 2), ([77, 6, 5], 3), ([1], 4), ([2], 4)):
        sequence.append(ids)
        states = sequence.run_until_exit(FixedDepth(depth))
        np.testing.assert_allclose(states.hidden[0], wanted.feed(ids, depth)[-1], atol=1e-3)
        assert sequence.frontier == [len(sequence)] * 5


def test_a_gate_stops_a_token_and_nothing_waits(pair):
    checkpoint, model = pair
    wanted, sequence = SharedOracle(checkpoint), model.new_sequence()
    sequence.append(PROMPT)
    wanted.feed(PROMPT, 4)  # prompts go all the way, wherever their last token would stop
    sequence.run_until_exit(ExitThreshold(0.6))
    depths = set()
    for token in range(20, 30):
        sequence.append([token])
        calls = sequence.work.calls
        states = sequence.run_until_exit(ExitThreshold(0.3 + 0.1 * (token % 4)))
        assert sequence.work.calls - calls == states.loop
        np.testing.assert_allclose(states.hidden[0], wanted.feed([token], states.loop)[-1], atol=1e-3)
        depths.add(states.loop)
    assert len(depths) > 1
    assert not any(len(rows) for rows in sequence.waiting())


def test_a_budget_does_not_hold_back_the_prompt(pair):
    """What is left out of a shared cache can never be caught up."""
    checkpoint, model = pair
    wanted, sequence = SharedOracle(checkpoint), model.new_sequence()
    budget = ExitTracker(ouro_edge.LoopBudget(1.5))
    sequence.append(PROMPT)
    first = sequence.run_until_exit(budget.next_rule())
    assert first.loop == 1
    np.testing.assert_allclose(first.hidden[0], wanted.feed(PROMPT, 4)[0], atol=1e-3)
    budget.record(1)
    sequence.append([9])
    second = sequence.run_until_exit(budget.next_rule())
    np.testing.assert_allclose(second.hidden[0], wanted.feed([9], 2)[-1], atol=1e-3)


def test_memory_is_one_loops(pair, bundle_of, checkpoint_of):
    _, model = pair
    with ouro_edge.load(bundle_of(checkpoint_of()), kv="fp32") as exact:
        used = []
        for m in (exact, model):
            sequence = m.new_sequence()
            sequence.append(PROMPT * 10)
            sequence.run_until_exit(FullDepth())
            used.append(sequence.kv_bytes)
        assert used[0] == 4 * used[1] > 0


def test_a_call_cut_short_leaves_the_positions_to_be_computed_again(pair):
    _, model = pair
    plain, cut = model.new_sequence(), model.new_sequence()
    for sequence in (plain, cut):
        sequence.append(PROMPT)
        sequence.run_until_exit(FullDepth())
        sequence.append([4, 5, 6])
    calls = []

    class Fires:
        def handle(self, make):
            return make()

        def check(self):
            calls.append(1)
            if len(calls) == 3:
                raise ouro_edge.Cancelled("enough")

    with pytest.raises(ouro_edge.Cancelled):
        cut.run_until_exit(FullDepth(), Fires())
    assert cut.frontier == [17, 14, 14, 14, 14]
    np.testing.assert_allclose(
        cut.run_until_exit(FullDepth()).hidden, plain.run_until_exit(FullDepth()).hidden, atol=1e-6
    )


def test_usage_counts_what_was_skipped_in_this_answer(pair):
    _, model = pair
    sequence = model.new_sequence()
    for _ in range(2):
        *tokens, done = model.generate(PROMPT, max_tokens=4, exit=FixedDepth(1), sequence=sequence, stop_ids=())
        fresh = len(PROMPT) - done.usage.cached_tokens + len(tokens) - 1
        assert (done.usage.loops_run, done.usage.loops_full) == (fresh, 4 * fresh)


def test_an_unknown_way_of_sharing_is_refused(bundle_of):
    with pytest.raises(RequestError, match="kv_share is 'first'; expected none or last"):
        ouro_edge.load(bundle_of(), kv_share="first")
