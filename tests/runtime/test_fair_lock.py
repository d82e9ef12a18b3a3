"""FairLock go by order of arrival, and whoever gives up waiting leaves the queue as it was."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from metered import onnx_backend

import ouro_edge
from ouro_edge.runtime.backend.fair_lock import FairLock


def wait_for(condition):
    """Until it holds; far more patient than any machine is slow."""
    for _ in range(30_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


def start(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def test_first_come_first_served():
    lock, order = FairLock(), []

    def work(i):
        with lock.hold():
            order.append(i)

    with lock.hold():
        threads = []
        for i in range(8):
            threads.append(start(work, i))
            wait_for(lambda: lock.waiting == len(threads))
    for thread in threads:
        thread.join()
    assert order == list(range(8)) and lock.waiting == 0


def test_who_takes_again_at_once_goes_behind_those_that_wait():
    lock, order = FairLock(), []

    def patient():
        with lock.hold():
            order.append("patient")

    with lock.hold():
        thread = start(patient)
        wait_for(lambda: lock.waiting == 1)
        order.append("greedy")
    with lock.hold():
        order.append("greedy")
    thread.join()
    assert order == ["greedy", "patient", "greedy"]


def test_one_at_a_time_whatever_happens_inside():
    lock, inside, most = FairLock(), [], []

    def work():
        for i in range(50):
            with suppress(KeyError), lock.hold():
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                if i % 3 == 0:
                    raise KeyError

    threads = [start(work) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 200


def test_a_cancelled_waiter_leaves_and_the_others_keep_their_order():
    lock, order = FairLock(), []
    cancels = [ouro_edge.Cancel() for _ in range(3)]

    def work(i):
        try:
            with lock.hold(cancels[i]):
                order.append(i)
        except ouro_edge.Cancelled:
            order.append(f"{i} left")

    with lock.hold():
        threads = []
        for i in range(3):
            threads.append(start(work, i))
            wait_for(lambda: lock.waiting == len(threads))
        cancels[1].cancel()
        threads[1].join()
        assert order == ["1 left"] and lock.waiting == 2
    for thread in threads:
        thread.join()
    assert order == ["1 left", 0, 2]


def test_block_and_head_of_a_model_share_their_turns(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        backend = onnx_backend(model)
        hidden = model.forward([5, 17, 3]).hidden
        for call in (lambda: model.forward([5, 17, 3]), lambda: backend.head(hidden)):
            with backend.lock.hold():
                thread = start(call)
                wait_for(lambda: backend.lock.waiting == 1)
                assert thread.is_alive()
            thread.join()


def test_a_generation_that_waits_for_its_turn_can_be_cancelled(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        cancel, events = ouro_edge.Cancel(), []
        lock = onnx_backend(model).lock
        with lock.hold():
            thread = start(lambda: events.extend(model.generate([5, 17], stop_ids=(), cancel=cancel)))
            wait_for(lambda: lock.waiting == 1)
            cancel.cancel()
            thread.join()
            assert [event.reason for event in events] == ["cancelled"]
        assert len(list(model.generate([5, 17], max_tokens=2, stop_ids=()))) == 3


@pytest.mark.parametrize("clients", [2, 5])
def test_conversations_on_one_model_do_not_see_each_other(bundle_of, clients):
    with ouro_edge.load(bundle_of()) as model:

        def talk(i):
            sequence, said = model.new_sequence(), [3 + i]
            for _ in range(3):
                said += [t.id for t in model.generate(said, max_tokens=4, stop_ids=(), sequence=sequence)
                         if isinstance(t, ouro_edge.Token)]  # fmt: skip
            return said

        alone = [talk(i) for i in range(clients)]
        found = {}
        threads = [start(lambda i=i: found.update({i: talk(i)})) for i in range(clients)]
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(clients)] == alone
