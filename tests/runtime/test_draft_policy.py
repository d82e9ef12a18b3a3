"""Decisions of the plan under scripted costs and outcomes."""

from __future__ import annotations

import pytest

from ouro_edge.runtime.speculation.draft_policy import DraftPlan, DraftPolicy, LatencyModel, RunningRate


def taught(*, right=0.95, sure=1.0, depth=4, tokens=200, slope=0.2, head=0.15):
    """A plan of four loops that has seen drafts of this quality and calls of these costs."""
    plan = DraftPolicy(4, clock=lambda: 0.0)
    teach(plan, right=right, sure=sure, depth=depth, tokens=tokens)
    for _ in range(100):
        for rows in (1, 2, 4, 8):
            plan.block.add(rows, 1 + slope * (rows - 1))
            plan.head.add(rows, head * (1 + slope * (rows - 1)))
    return plan


def teach(plan, *, right, sure=1.0, depth=4, tokens=200):
    for i in range(tokens):
        plan.record_token(depth)
        for loop in range(1, depth):
            good = (i * right) % 1 + right >= 1  # evenly spread
            plan.record_draft(loop, (i * sure) % 1 + sure >= 1, good)


def decide(plan, limit=4):
    return [plan.choose(limit) for _ in range(4)][-1]


def test_good_drafts_are_made_from_the_first_loop_and_far():
    draft = decide(taught(right=0.97))
    assert draft.depth == 1 and draft.rows >= 5
    assert taught(right=0.97).gain(draft, 4) > 1.4


def test_worse_drafts_reach_less_far():
    assert 2 <= decide(taught(right=0.7)).rows < decide(taught(right=0.97)).rows


@pytest.mark.parametrize("taught_by", [{"right": 0.1}, {"sure": 0.0}, {"slope": 0.9, "right": 0.8}, {"depth": 1}])
def test_it_is_off_where_it_cannot_pay(taught_by):
    assert decide(taught(**taught_by)).rows == 1


def test_it_comes_back_when_drafts_get_better():
    plan = taught(right=0.1)
    assert decide(plan).rows == 1
    teach(plan, right=1.0, tokens=100)
    assert decide(plan).rows > 1


def test_nothing_is_drafted_before_anything_was_seen_unless_asked():
    assert DraftPolicy(4).choose(4).rows == 1
    assert DraftPolicy(4).needs_probe()
    assert DraftPolicy(4, forced=True).choose(4).rows > 1
    assert DraftPolicy(4, forced=True).choose(1) == DraftPlan(1, 1)


def test_probes_go_on():
    plan = taught(right=0.1)
    looks = []
    for _ in range(32):
        looks.append(plan.needs_probe())
        plan.record_token(4)
    assert 1 <= sum(looks) < 10


def test_gain_is_that_of_the_counted_calls_where_all_is_sure():
    plan = taught(right=1.0)
    # 4 positions from loop 1: 4 + 3 heads, then 3 calls of 4 rows and a head of 4, against 4 times 4 calls and a head.
    cost = 4 + 3 * 0.15 + 3 * 1.6 + 0.15 * 1.6
    assert plan.gain(DraftPlan(1, 4), 4) == pytest.approx(4 * 4.15 / cost, rel=0.03)


def test_costs_follow_the_calls_and_not_their_outliers():
    cost = LatencyModel()
    assert cost.predict(1) == 1.0
    for _ in range(60):
        cost.add(1, 0.05)
        cost.add(4, 0.05 * 2.5)
    assert cost.predict(1) == pytest.approx(0.05, rel=0.05)
    assert cost.predict(4) == pytest.approx(0.125, rel=0.05)
    cost.add(1, 60.0)
    cost.add(500, 9.0)
    assert cost.predict(1) < 0.07


def test_a_share_follows_what_happens():
    share = RunningRate(0.5)
    for i in range(300):
        share.add(i % 4 != 0)
    assert share.value == pytest.approx(0.75, abs=0.05)
