"""Stages of one operation share one callback."""

from __future__ import annotations

import pytest

from ouro_edge.system.progress import stages


def test_stages_divide_one_job_by_their_shares():
    seen = []
    first, second = stages(lambda *call: seen.append(call), 3, 1)
    first(0, 50, "a")
    first(25, 50, "b")
    first(50, 50, "")
    second(1, 2, "c")
    second(2, 2, "")
    done, total, what = zip(*seen, strict=True)
    assert set(total) == {total[0]} and [d / total[0] for d in done] == [0, 0.375, 0.75, 0.875, 1]
    assert what == ("a", "b", "", "c", "")


def test_stages_can_be_divided_again():
    seen = []
    _, second = stages(lambda *call: seen.append(call), 1, 1)
    inner, last = stages(second, 1, 3)
    inner(1, 1, "x")
    last(5, 5, "y")
    assert [done / total for done, total, _ in seen] == [0.625, 1]


def test_a_stage_without_work_ends_at_once():
    seen = []
    (only,) = stages(lambda *call: seen.append(call), 1)
    only(0, 0, "")
    assert seen[0][0] == seen[0][1]


@pytest.mark.parametrize("shares", [(1,), (2, 5, 1)])
def test_without_a_callback_no_stage_has_one(shares):
    assert stages(None, *shares) == (None,) * len(shares)
