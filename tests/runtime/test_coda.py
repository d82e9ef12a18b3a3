"""Sequences with a coda against `raven_reference.exact`: any exits, truncations, forks, new prompts, saved states."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import GOLDEN

import ouro_edge
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.programs import raven_reference
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.backend.reference_backend import ReferenceBackend
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward import run_forward
from ouro_edge.runtime.sequence import coda_sequence
from ouro_edge.runtime.speculation.draft_policy import DraftPlan, DraftPolicy
from ouro_edge.testing import MeteredBackend

HUGINN, LLAMA, OLMO = (GOLDEN.parent / name for name in ("raven-tiny", "retrofit-tiny", "retrofit-olmo-tiny"))
IDS = [5, 17, 3, 88, 41, 41, 7, 60, 12, 33, 2, 0, 95, 11]
RULES = ["change:0.72", "change:0.6,floor=2", "turn:0.3", "kl:0.3", "kl:0.2,ceiling=6", "entropy-change:0.03",
         "agreement", "stable:2,ceiling=6", "confidence:0.05", "entropy:5.3"]  # fmt: skip


class Planned(ExitPolicy):
    """Stops at depths that are given in advance, position by position, and looks at logits on the way or not."""

    def __init__(self, depths, limit=4, looks=False):
        self.depths, self._limit, self.looks, self.place = list(depths), limit, looks, -1

    def limit(self, config):
        return self._limit

    def stops(self, states):
        self.place += states.loop == 1
        if self.looks:
            assert np.isfinite(states.logits).all()
        return np.array([states.loop >= self.depths[self.place]])


@pytest.fixture(scope="module", params=[HUGINN, OLMO], ids=lambda path: path.name)
def oracle(request):
    """Config and weights of a golden model."""
    checkpoint = open_checkpoint(request.param)
    weights = dict(checkpoint.weights)
    weights.setdefault("head", weights["embedding"])
    return request.param, checkpoint.config, weights


@pytest.fixture(scope="module", params=["reference", "onnxruntime"])
def model(request, oracle, bundle_of):
    path, config, weights = oracle
    if request.param == "reference":
        yield ouro_edge.Model(ReferenceBackend(config, weights))
    else:
        with ouro_edge.load(bundle_of(path), kv="fp32") as loaded:
            yield loaded


def logits_at(oracle, ids, depths):
    """Logits [T, V] of positions that leave at these depths."""
    _, config, weights = oracle
    states = raven_reference.core_states(config, weights, np.array(ids), max(depths))
    chosen = states[np.array(depths) - 1, np.arange(len(ids))]
    return raven_reference.coda(config, weights, chosen) @ weights["head"].T


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_fixed_depths(oracle, model, limit):
    found = model.forward(IDS, exit=ouro_edge.FixedDepth(limit))
    np.testing.assert_allclose(found.logits, logits_at(oracle, IDS, [limit] * len(IDS)), atol=1e-3)
    assert set(found.depth.tolist()) == {limit}


@pytest.mark.parametrize("text", RULES)
def test_every_rule_equals_its_oracle(oracle, model, text):
    _, config, weights = oracle
    rule = ouro_edge.parse_exit(text)
    limit = rule.limit(config)

    def stops(states, logits):
        from ouro_edge.runtime.exits.loop_states import LoopStates

        loop = len(states)
        known = LoopStates(np.full((1, loop), np.nan), [row[None] for row in states], lambda rows: rows)
        if rule.needs_logits:
            known = LoopStates(known.gate_logits, [np.full((1, 1), step) for step in range(1, loop + 1)],
                               lambda rows: logits(int(rows[0, 0]))[None])  # fmt: skip
        return bool(rule.stops(known)[0])

    depths, rows = raven_reference.exact(config, weights, np.array(IDS), limit, stops)
    found = model.forward(IDS, exit=rule)
    assert found.depth.tolist() == depths.tolist()
    np.testing.assert_allclose(found.logits, rows @ weights["head"].T, atol=1e-3)


@pytest.mark.parametrize("text", ["change:0.72", "kl:0.3"])
def test_positions_are_decided_on_a_few_at_a_time(model, monkeypatch, text):
    """The steps of the core run for all positions of a part at once, whether or not the rule looks at logits."""
    rule, found = ouro_edge.parse_exit(text), {}
    for most in (1, 3, 64):
        monkeypatch.setattr(coda_sequence, "POSITIONS_AT_A_TIME", most)
        sequence = model.new_sequence()
        found[most] = run_forward(sequence, IDS, rule), sequence
    for forward, sequence in found.values():
        assert forward.depth.tolist() == found[1][0].depth.tolist() == sequence.exits
        np.testing.assert_allclose(forward.hidden, found[1][0].hidden, atol=1e-4)
    one, all_at_once = (found[most][1].work.calls for most in (1, 64))
    if rule.needs_logits:  # a call of the coda for every position and step, and four of the core
        assert all_at_once < one and all_at_once <= sum(found[64][0].depth) + 1 + 4
    else:  # one of the prelude, one of the coda
        assert all_at_once == 1 + max(found[64][0].depth) + 1
    sequence = found[64][1]  # both go on
    logits = []
    for each in (sequence, found[1][1]):
        each.append([3])
        logits.append(each.run_until_exit(Planned([4])).logits)
    np.testing.assert_allclose(*logits, atol=1e-3)


def test_rules_stop_at_different_depths(model):
    depths = {text: model.forward(IDS, exit=ouro_edge.parse_exit(text)).depth for text in RULES}
    assert sum(len(set(found.tolist())) > 1 for found in depths.values()) >= 3


class Walk:
    """A sequence, and what the definition says about it: the tokens, and the depth of every position."""

    def __init__(self, model, oracle, sequence=None, ids=(), depths=()):
        self.model, self.oracle = model, oracle
        self.sequence = sequence or model.new_sequence()
        self.ids, self.depths = list(ids), list(depths)

    def prompt(self, ids, depth, limit, looks):
        """A new prompt: all of it leaves at the limit, but the last position."""
        self.sequence.set_prompt(ids)
        self.ids, self.depths = list(ids), [limit] * (len(ids) - 1)
        self.run(depth, limit, looks)

    def run(self, depth, limit, looks):
        self.depths.append(min(depth, limit))
        states = self.sequence.run_until_exit(Planned([depth], limit, looks))
        assert states.loop == self.depths[-1]
        np.testing.assert_allclose(states.logits[0], logits_at(self.oracle, self.ids, self.depths)[-1], atol=1e-3)
        if (
            looks and states.loop > 1
        ):  # of a state that is not the exit: the sequence goes on as if it had not been read
            other = [*self.depths[:-1], 1]
            np.testing.assert_allclose(states[1].logits[0], logits_at(self.oracle, self.ids, other)[-1], atol=1e-3)

    def step(self, token, depth, limit, looks):
        self.sequence.append([token])
        self.ids.append(token)
        self.run(depth, limit, looks)

    def truncate(self, length):
        self.sequence.truncate(length)
        del self.ids[length:], self.depths[length:]

    def fork(self, length):
        child = self.sequence.copy_prefix(length)
        return Walk(self.model, self.oracle, child, self.ids[:length], self.depths[:length])


TOKENS, DEPTHS = st.integers(0, 319), st.integers(1, 6)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), TOKENS, DEPTHS, st.booleans()),
        st.tuples(st.just("step"), TOKENS, DEPTHS, st.booleans()),
        st.tuples(st.just("truncate"), st.integers(0, 6)),
        st.tuples(st.just("fork"), st.integers(0, 3)),
        st.tuples(st.just("prompt"), st.integers(0, 8), st.lists(TOKENS, min_size=3, max_size=6), DEPTHS,
                  st.sampled_from([2, 4, 4, 128])),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, data=st.data())
def test_any_history_equals_the_oracle(oracle, model, operations, data):
    walk, limit = Walk(model, oracle), 4
    walk.prompt(IDS[:5], 3, limit, looks=True)
    for kind, *values in operations:
        if kind == "step":
            token, depth, looks = values
            walk.step(token, depth, limit, looks)
        elif kind == "truncate":
            walk.truncate(max(2, len(walk.ids) - values[0]))
        elif kind == "fork":
            walk = walk.fork(max(2, len(walk.ids) - values[0]))
        else:
            kept, ids, depth, limit = values
            limit = 6 if limit == 128 else limit  # of 128 loops: the oracle would take long
            walk.prompt([*walk.ids[:kept], *ids], depth, limit, looks=False)
    frontier = walk.sequence.frontier
    assert all(above >= at for above, at in pairwise(frontier))


def test_no_row_is_computed_twice(oracle, model):
    metered = ouro_edge.Model(MeteredBackend(model.backend))
    sequence = metered.new_sequence()
    sequence.append(IDS)
    sequence.run_until_exit(Planned([2]))
    for depth in (1, 4, 3):
        sequence.append([7])
        sequence.run_until_exit(Planned([depth]))
    assert sequence.exits == [4] * (len(IDS) - 1) + [2, 1, 4, 3]
    length = len(IDS) + 3
    assert sequence.frontier[:6] == [length, length, length, length, length, length - 1]
    assert sequence.work.rows == sum(sequence.frontier[2:])


@pytest.fixture(scope="module")
def loaded_model(oracle, bundle_of):
    with ouro_edge.load(bundle_of(oracle[0]), kv="fp32") as loaded:
        yield loaded


def test_a_saved_state_goes_on(oracle, loaded_model, tmp_path):
    model = loaded_model
    walk = Walk(model, oracle)
    walk.prompt(IDS, 2, 4, looks=True)
    for token, depth in ((3, 1), (9, 4), (4, 2)):
        walk.step(token, depth, 4, looks=True)
    ouro_edge.save_sequence(walk.sequence, tmp_path / "state")
    loaded = ouro_edge.load_sequence(model, tmp_path / "state")
    assert loaded.exits == walk.depths and loaded.frontier == walk.sequence.frontier
    Walk(model, oracle, loaded, walk.ids, walk.depths).step(8, 3, 4, looks=True)
    damaged = bytearray((tmp_path / "state").read_bytes())
    damaged[damaged.index(b"\n") + 4 * len(walk.ids) + 1] ^= 64  # an exit depth
    (tmp_path / "damaged").write_bytes(bytes(damaged))
    with pytest.raises(ouro_edge.RequestError, match="damaged"):
        ouro_edge.load_sequence(model, tmp_path / "damaged")


class Drafts(DraftPolicy):
    """Drafts of the same depth and number in every round, followed whatever their probability."""

    def __init__(self, loops, depth, rows):
        super().__init__(loops, forced=True)
        self._always = DraftPlan(depth, rows)

    def choose(self, limit):
        return DraftPlan(min(self._always.depth, limit), self._always.rows)

    def is_confident(self, probability):
        return True


@pytest.mark.parametrize(("depth", "rows"), [(1, 2), (1, 4), (2, 3), (3, 8)])
@pytest.mark.parametrize("loops", [4, 6])
@pytest.mark.parametrize("lens", [0, 2])
def test_drafts_change_nothing(model, depth, rows, loops, lens):
    options = {"max_tokens": 14, "stop_ids": (), "exit": ouro_edge.FixedDepth(loops), "logit_lens": lens}
    plain = list(model.generate(IDS, **options))
    drafts = Drafts(model.config.most_loops, depth, rows)
    drafted = list(model.generate(IDS, speculate=drafts, **options))
    assert [token.id for token in drafted[:-1]] == [token.id for token in plain[:-1]]
    assert drafted[-1].usage.drafted_tokens > 0
    for one, other in zip(drafted[:-1], plain[:-1], strict=True):
        assert [[c[0] for c in loop] for loop in one.logit_lens] == [[c[0] for c in loop] for loop in other.logit_lens]


def test_drafts_need_a_fixed_depth(model):
    with pytest.raises(ouro_edge.RequestError, match="one position after the other"):
        list(model.generate(IDS, exit=ouro_edge.parse_exit("kl:0.1"), speculate=True))


def test_answers_do_not_depend_on_what_was_cached(oracle, model):
    rule, sequence = ouro_edge.parse_exit("change:0.7"), model.new_sequence()
    first = list(model.generate(IDS, max_tokens=6, stop_ids=(), exit=rule, sequence=sequence))
    longer = [*IDS, *(token.id for token in first[:-1]), 5, 6]
    for exit in (rule, ouro_edge.FixedDepth(2), ouro_edge.FixedDepth(6), ouro_edge.parse_exit("kl:0.2")):
        kept = list(model.generate(longer, max_tokens=6, stop_ids=(), exit=exit, sequence=sequence))
        fresh = list(model.generate(longer, max_tokens=6, stop_ids=(), exit=exit))
        assert [(t.id, t.depth) for t in kept[:-1]] == [(t.id, t.depth) for t in fresh[:-1]]


def test_samples_share_a_prompt(model):
    options = {"max_tokens": 5, "stop_ids": (), "exit": ouro_edge.parse_exit("change:0.7")}
    alone = [token.id for token in list(model.generate(IDS, **options))[:-1]]
    found = {}
    for index, event in model.generate_many([IDS], samples=3, **options):
        if isinstance(event, ouro_edge.Token):
            found.setdefault(index, []).append(event.id)
    assert list(found.values()) == [alone] * 3


def test_loop_counts(model):
    assert (model.config.loops, model.config.most_loops) == (4, 128)
    for policy in (ouro_edge.FixedDepth(129), ouro_edge.parse_exit("agreement,ceiling=200")):
        with pytest.raises(ouro_edge.RequestError, match="runs 1 to 128 loops"):
            model.forward(IDS, exit=policy)
    budget = ouro_edge.LoopBudget(2.0, ouro_edge.FullDepth())
    depths = [t.depth for t in list(model.generate(IDS, max_tokens=4, stop_ids=(), exit=budget))[:-1]]
    assert depths == [2, 2, 2, 2]
    with pytest.raises(ouro_edge.NoGateError):
        model.forward(IDS, exit=ouro_edge.ExitThreshold(0.5))


def test_noise_belongs_to_a_position(oracle, bundle_of):
    path, config, weights = oracle
    rows = loop_program(replace(config, state_seed=7)).first_rows
    embedded = np.zeros((40, config.hidden_size), np.float32)
    noise = rows(embedded)[:, config.hidden_size :]
    np.testing.assert_array_equal(rows(embedded[:5], start=20)[:, config.hidden_size :], noise[20:25])
    assert np.abs(noise).max() <= 3.001 * config.state_std
    assert 0.9 < noise.std() / (0.9866 * config.state_std) < 1.1  # of a normal distribution cut at 3
    states = raven_reference.core_states(config, weights, np.array(IDS), 4, noise[: len(IDS)])
    expected = raven_reference.coda(config, weights, states[-1]) @ weights["head"].T
    with ouro_edge.load(bundle_of(path), kv="fp32", state_noise=7) as model:
        np.testing.assert_allclose(model.forward(IDS).logits, expected, atol=1e-3)
        model.backend.rows_per_call = 3
        np.testing.assert_allclose(model.forward(IDS).logits, expected, atol=1e-3)
    with pytest.raises(ouro_edge.RequestError, match="does not start from noise"):
        ouro_edge.load(bundle_of(), state_noise=7)
