"""The queue of calls, with a block that records what it is given: which groups share a call, how prompts are cut."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import ouro_edge
from ouro_edge.runtime.backend.batching.call_queue import CallQueue
from ouro_edge.runtime.backend.batching.job import Job
from ouro_edge.runtime.backend.batching.prompt_budget import PromptBudget
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup


class Block:
    """Answers with rows + 1; the first call waits until it is released. `before` sees the groups of each call."""

    def __init__(self, before=lambda groups: None):
        self.before, self.calls = before, []  # [(cache, start, rows)] per call
        self.started, self.release = threading.Event(), threading.Event()

    def __call__(self, groups, cancel):
        self.before(groups)
        self.calls.append([(group.cache, group.start, len(group.rows)) for group in groups])
        if len(self.calls) == 1:
            self.started.set()
            assert self.release.wait(60)
        return [GroupOutput(group.rows + 1, group.rows[:, 0] * 2) for group in groups]


def group(name, count, start=0):
    return RowGroup(name, start, np.arange(count * 2, dtype=np.float32).reshape(count, 2) + start)


def submitted(queue, block, groups, cancels=None):
    """The results of threads that submit one group each while the first one's call runs."""
    found = {}

    def submit(name):
        try:
            found[name] = queue.block([groups[name]], (cancels or {}).get(name))
        except ouro_edge.Cancelled as problem:
            found[name] = problem

    threads = [threading.Thread(target=submit, args=(name,)) for name in groups]
    threads[0].start()
    assert block.started.wait(60)
    for i, thread in enumerate(threads[1:], start=1):
        thread.start()
        while queue.waiting < i:
            time.sleep(0.001)
    return threads, found


def test_a_prompt_in_company_is_computed_in_parts_and_alone_at_once():
    block = Block()
    queue = CallQueue(block, lambda rows: rows, 8, 256)
    groups = {"first": group("first", 1), "prompt": group("prompt", 150, 50), "token": group("token", 1)}
    threads, found = submitted(queue, block, groups)
    block.release.set()
    for thread in threads:
        thread.join(60)
    # 64 rows of a prompt before times are known: 150 rows are three even parts; alone again, the rest is one.
    assert block.calls == [[("first", 0, 1)], [("prompt", 50, 50), ("token", 0, 1)], [("prompt", 100, 100)]]
    [output] = found["prompt"]
    np.testing.assert_array_equal(output.states, groups["prompt"].rows + 1)
    np.testing.assert_array_equal(output.gates, groups["prompt"].rows[:, 0] * 2)
    queue.block([group("alone", 200)], None)
    assert block.calls[-1] == [("alone", 0, 200)]


def test_a_cancelled_prompt_leaves_between_its_parts():
    cancel = ouro_edge.Cancel()
    block = Block(lambda groups: len(groups) == 2 and cancel.cancel())
    queue = CallQueue(block, lambda rows: rows, 8, 256)
    groups = {"first": group("first", 1), "prompt": group("prompt", 100), "token": group("token", 1)}

    threads, found = submitted(queue, block, groups, {"prompt": cancel})
    block.release.set()
    for thread in threads:
        thread.join(60)
    assert isinstance(found["prompt"], ouro_edge.Cancelled) and len(found["token"]) == 1
    assert block.calls[1:] == [[("prompt", 0, 50), ("token", 0, 1)]] and queue.waiting == 0
    queue.block([group("later", 3)], None)


def test_an_error_in_a_part_ends_the_groups_of_that_call():
    def before(groups):
        if len(groups) == 2:
            raise RuntimeError("broken")

    block = Block(before)
    queue = CallQueue(block, lambda rows: rows, 8, 256)
    block.release.set()
    with pytest.raises(RuntimeError, match="broken"):
        queue.block([group("a", 40), group("b", 1)], None)
    assert len(queue.block([group("c", 2)], None)) == 1


def test_prompts_share_what_short_ones_leave():
    budget = PromptBudget(256)
    assert budget.share([1, 300]) == [1, 60]  # at most 64: five even parts
    assert budget.share([300], alone=True) == [300] and budget.share([300]) == [60]
    assert budget.share([4, 8, 1]) == [4, 8, 1]
    assert budget.share([1, 40, 50]) == [1, 20, 25]  # at most half of 64, then what is left
    assert budget.share([1, 20, 40]) == [1, 20, 40]
    assert budget.share([300, 20], alone=True) == [150, 20]  # nobody decodes: 256 rows
    assert budget.share([1, *[20] * 64])[1:3] == [1, 1]


def test_a_part_is_as_large_as_the_wait_for_it_allows():
    budget = PromptBudget(256)
    budget.record([1] * 8, [1] * 8, 0.1)
    budget.record([1] * 8 + [300], [1] * 8 + [30], 0.25)  # 5 ms per row: 150 in 0.75 s
    assert budget.share([1] * 8 + [450])[-1] == 150
    slow, small = PromptBudget(256), PromptBudget(256)
    slow.record([1], [1], 0.2)
    slow.record([1, 300], [1, 30], 0.5)
    slow.record([1], [1], 0.2)
    assert slow.share([1, 480])[-1] == 69  # 10 ms per row: at most 75, in even parts
    slow.record([1, 300], [1, 4], 1.1)
    slow.record([1], [1], 2.0)
    assert slow.share([1, 480])[-1] == 48  # never fewer
    small.record([1], [1], 0.001)
    small.record([1, 300], [1, 30], 0.002)
    assert small.share([1, 256])[-1] == 256  # short calls leave a prompt whole


def test_after_a_part_the_others_have_calls_without_it():
    budget = PromptBudget(256)
    budget.record([1] * 8, [1] * 8, 0.1)
    budget.record([1] * 8 + [300], [1] * 8 + [100], 0.7)  # 0.6 s more: 0.4 s of calls of 0.1 s, this one included
    served = []
    while budget.share([1] * 8 + [200]) == [1] * 8 + [0]:
        budget.record([1] * 8, [1] * 8, 0.1)
        served.append(0.1)
    assert len(served) == 3
    budget.record([1] * 8 + [200], [1] * 8 + [20], 0.22)  # a short prompt delays them little
    assert budget.share([1] * 8 + [20]) == [1] * 8 + [20]
    budget.record([1] * 8 + [300], [1] * 8 + [100], 0.7)
    assert budget.share([200]) == budget.share([200], alone=False) != [0]  # nobody else waits: no call would be empty


def test_long_prompts_take_turns():
    block = Block()
    queue = CallQueue(block, lambda rows: rows, 8, 256)
    groups = {"token": group("token", 1), "short": group("short", 40)}
    groups |= {name: group(name, 300, 600) for name in ("a", "b")}
    threads, found = submitted(queue, block, groups)
    block.release.set()
    for thread in threads:
        thread.join(60)
    assert all(len(found[name][0].states) == len(groups[name].rows) for name in groups)
    names = [[name for name, *_ in call] for call in block.calls]
    assert names[1] == ["short", "a"] and not any({"a", "b"} <= set(call) for call in names)
    for name in ("a", "b"):
        starts = [start for call in block.calls for cache, start, _ in call if cache == name]
        assert starts == sorted(starts) and starts[0] == 600


def test_a_prompt_that_was_passed_over_and_given_up_is_not_kept(monkeypatch):
    """Its thread has gone: it could neither lead nor be woken."""
    block = Block()
    queue = CallQueue(block, lambda rows: rows, 8, 256)

    def share(self, waiting, alone):
        for job in jobs:
            job.abandoned = len(job.work[0].rows) > 16
        return [0 if rows > 16 else rows for rows in waiting]

    jobs = []
    before = Job.waiting_rows
    monkeypatch.setattr(Job, "waiting_rows", lambda job: (jobs.append(job), before(job))[1])
    monkeypatch.setattr(PromptBudget, "share", share)
    block.release.set()
    gone = Job("block", [group("prompt", 40)], None)
    queue._waiting.append(gone)
    assert len(queue.block([group("token", 1)], None, "block")) == 1
    assert queue.waiting == 0


def test_jobs_of_a_leader_who_is_interrupted_before_they_run_are_handed_over(monkeypatch):
    """Ctrl-C can arrive between any two steps of the leader."""
    queue = CallQueue(Block(), lambda rows: rows, 8, 256)
    other = Job("block", [group("other", 2)], None)
    queue._waiting.append(other)

    def interrupt(self, waiting, alone):
        assert waiting == [1, 2] and queue.waiting == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptBudget, "share", interrupt)
    with pytest.raises(KeyboardInterrupt):
        queue.block([group("own", 1)], None, "block")
    assert queue.waiting == 1 and other.leads and other.wake.is_set() and not other.done
