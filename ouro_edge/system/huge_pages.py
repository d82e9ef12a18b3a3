"""Moves loaded weights to huge pages on Linux, which makes reading them faster; every loop of every token does.

Memory is allocated in pages of 4 KB by default. Processors prefetch only within a page, and every page needs its own
address translation, so gigabytes are read faster from pages of 2 MB. onnxruntime does not request them; this module
does so after loading, in the background. On other systems, or where the kernel refuses, it has no effect.
"""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Range = tuple[int, int]  # addresses: first, and one past the last

MADV_COLLAPSE = 25  # since Linux 6.1: synchronous, and independent of the system's default
HUGE_PAGE_BYTES = 2 << 20  # on x86-64, and on arm64 with pages of 4 KB
BYTES_PER_CALL = 32 << 20
_MAX_STACK_GUARD_BYTES = 64 << 10  # the inaccessible range below a thread's stack
MIN_WEIGHT_BYTES = 256 << 20  # smaller models gain little: processor caches hold much of them


class PageMove:
    """Memory that moves to huge pages in the background."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self, ranges: list[Range]) -> None:
        """Begin to move these ranges."""
        self._thread = threading.Thread(target=collapse, args=(ranges,), name="large-pages", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when all has moved, at once if there was nothing to move."""
        if self._thread is not None:
            self._thread.join()


@contextmanager
def large_pages() -> Iterator[PageMove]:
    """Move memory allocated inside the block to huge pages afterwards, if it is large; takes a second per gigabyte."""
    before, move = anonymous_memory(), PageMove()
    yield move
    new = without(anonymous_memory(), before)
    if sum(end - start for start, end in new) >= MIN_WEIGHT_BYTES:
        move.start(new)


def collapse(ranges: list[Range]) -> None:
    """Move whole huge pages within the ranges; stops when the system has none left or the memory was freed."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for start, end in ranges:
        last = end // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        for at in range(-(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, last, BYTES_PER_CALL):
            size = min(BYTES_PER_CALL, last - at)
            failed = madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), MADV_COLLAPSE)
            if failed and ctypes.get_errno() == errno.ENOMEM:
                return


def anonymous_memory() -> list[Range]:
    """Private writable memory of this process except stacks, by address; empty where the system does not report it."""
    if sys.platform != "linux":
        return []
    try:
        lines = Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    found, guard = [], 0
    for line in lines:  # addresses, rights, offset, device, inode, name
        span, rights, _, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split(b"-"))
        if rights == b"rw-p" and inode == b"0" and start != guard:
            found.append((start, end))
        guard = end if rights == b"---p" and end - start <= _MAX_STACK_GUARD_BYTES else 0
    return found


def without(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """The parts of `ranges` outside all of `taken`; both sorted by address."""
    left = []
    for start, end in ranges:
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                left.append((start, low))
            start = max(start, high)
        if start < end:
            left.append((start, end))
    return left
