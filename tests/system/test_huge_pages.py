"""Large pages for weights: which memory is meant, and that it gets there where the system can."""

from __future__ import annotations

import ctypes
import errno
import mmap
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ouro_edge.system import huge_pages as module
from ouro_edge.system.huge_pages import anonymous_memory, collapse, large_pages, without

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
SIZE = 64 << 20


def allocate(size: int = SIZE) -> tuple[mmap.mmap, tuple[int, int]]:
    """Touched memory of its own, in small pages whatever the system's default, and where it lies."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.write(b"7" * size)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pytest.skip("this system has no large pages")
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return memory, (start, start + size)


def in_large_pages() -> int:
    """Bytes of this process that lie in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages"))


@pytest.fixture
def collapsed(monkeypatch):
    """What `large_pages` wants moved, which is not."""
    seen: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(module, "collapse", seen.append)
    monkeypatch.setattr(module, "MIN_WEIGHT_BYTES", SIZE // 2)
    return seen


def join() -> None:
    for thread in threading.enumerate():
        if thread.name == "large-pages":
            thread.join()


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
def test_what_was_allocated_inside_is_meant(collapsed):
    _old, (old, old_end) = allocate()
    with large_pages():
        _new, (new, new_end) = allocate()
    join()
    (ranges,) = collapsed
    assert any(start <= new and new_end <= end for start, end in ranges)
    assert all(end <= old or old_end <= start for start, end in ranges)


@linux
def test_little_memory_and_stacks_stay_as_they_are(collapsed):
    with large_pages():
        _kept = [allocate(2 << 20)]
        stop = threading.Event()
        threads = [threading.Thread(target=stop.wait) for _ in range(12)]  # 8 MB each, most of it only reserved
        for thread in threads:
            thread.start()
    join()
    stop.set()
    assert collapsed == []


@linux
def test_memory_moves_and_keeps_its_content():
    memory, (start, end) = allocate()
    probe, (at, _) = allocate(4 << 20)
    aligned = -(-at // module.HUGE_PAGE_BYTES) * module.HUGE_PAGE_BYTES
    size = ctypes.c_size_t(module.HUGE_PAGE_BYTES)
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(aligned), size, module.MADV_COLLAPSE):
        pytest.skip("this system moves nothing to large pages on demand")
    before = in_large_pages()
    collapse([(start, end)])
    assert in_large_pages() - before >= SIZE // 2
    assert memory[:] == b"7" * SIZE and probe[:1] == b"7"


@linux
@pytest.mark.parametrize(("problem", "calls"), [(errno.ENOMEM, 1), (errno.EINVAL, 4)])
def test_it_ends_when_memory_is_gone_and_goes_on_otherwise(monkeypatch, problem, calls):
    seen = []

    def madvise(address, size, advice):
        seen.append((address.value, size.value))
        ctypes.set_errno(problem)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(madvise=madvise))
    page, twice = module.HUGE_PAGE_BYTES, 2 * module.BYTES_PER_CALL
    collapse([(page, page + twice), (1 << 40, (1 << 40) + twice)])
    assert len(seen) == calls and seen[0] == (page, module.BYTES_PER_CALL)


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert anonymous_memory() == []
    with large_pages():
        pass
