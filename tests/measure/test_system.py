"""Memory of the process, bandwidth of the machine, and jobs in a process of their own."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ouro_edge.errors import OuroEdgeError, RequestError
from ouro_edge.measure.bandwidth import memory_read
from ouro_edge.measure.memory import process_memory
from ouro_edge.measure.own_process import in_own_process
from ouro_edge.quant import preset


def test_memory_follows_what_is_allocated():
    before = process_memory()
    held = np.ones(64 << 20, np.uint8)
    now = process_memory()
    assert now.resident - before.resident > held.nbytes * 0.9
    del held
    after = process_memory()
    assert after.resident < now.resident - (32 << 20)
    assert after.peak > after.resident + (32 << 20)  # to a megabyte or so: Linux counts in batches


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_read_is_a_plausible_rate(threads):
    assert 1e8 < memory_read(threads, size=4 << 20) < 1e13


def test_items_come_from_another_process_in_order():
    assert list(in_own_process(range, 3)) == [0, 1, 2]


def test_errors_cross_over():
    with pytest.raises(RequestError, match="nonsense"):
        list(in_own_process(preset, "nonsense"))


def test_a_process_that_dies_is_an_error():
    with pytest.raises(OuroEdgeError, match="exit code 7"):
        list(in_own_process(os._exit, 7))


def test_giving_up_ends_the_process():
    items = in_own_process(range, 10**9)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
