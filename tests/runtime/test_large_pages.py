"""Large pages for weights: which memory is meant, and that it gets there where the system can."""

from __future__ import annotations

import mmap
import sys
import threading
from pathlib import Path

import pytest

from ouro_edge.runtime import large_pages as module
from ouro_edge.runtime.large_pages import anonymous_memory, collapse, large_pages, without

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
SIZE = 64 << 20


def allocate() -> mmap.mmap:
    """Touched memory of its own, in small pages whatever the system's default."""
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(b"7" * SIZE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def in_large_pages() -> int:
    """Bytes of this process that lie in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages"))


@pytest.mark.parametrize(
    ("ranges", "taken", "left"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(0, 9)], [(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 9)]),
        ([(0, 4), (6, 9)], [(3, 7)], [(0, 3), (7, 9)]),
        ([(4, 6)], [(0, 4), (6, 9)], [(4, 6)]),
    ],
)
def test_what_is_new(ranges, taken, left):
    assert without(ranges, taken) == left


@linux
def test_new_memory_moves_and_keeps_its_content(monkeypatch):
    monkeypatch.setattr(module, "_WORTH_IT", SIZE // 2)
    old = allocate()
    with large_pages():
        new = allocate()
    for thread in threading.enumerate():
        if thread.name == "large-pages":
            thread.join()
    assert new[:] == old[:] == b"7" * SIZE
    moved = in_large_pages()
    collapse(anonymous_memory())  # what the system can at all: none before Linux 6.1
    if in_large_pages() < SIZE:
        pytest.skip("this system has no large pages to give")
    assert SIZE - (8 << 20) <= moved < 2 * SIZE - (8 << 20)


@linux
def test_little_memory_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(module, "collapse", None)  # would fail in the thread, which pytest reports
    with large_pages():
        allocate()


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert anonymous_memory() == []
    with large_pages():
        pass
