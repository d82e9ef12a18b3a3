"""Moves loaded weights to large pages on Linux: every loop of every token reads them all, and does so faster then.

Memory comes in pages of 4 KB unless a program asks, and streaming gigabytes stumbles over their ends: processors
prefetch within a page only, and every page has its own translation. onnxruntime does not ask, so we do, afterwards and
in the background. Elsewhere, and where the system refuses, nothing happens.
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

_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1: now, and whatever the system's default is
_PAGE = 2 << 20  # of x86-64; on arm64 with pages of 4 KB too
_PIECE = 32 << 20  # bytes a call
_GUARD = 64 << 10  # bytes below a thread's stack that nobody may touch, at the most
_WORTH_IT = 256 << 20  # bytes: caches and a short answer hide what smaller models would gain


@contextmanager
def large_pages() -> Iterator[None]:
    """Move what is allocated inside, if it is much, to large pages afterwards, which takes a second a gigabyte."""
    before = anonymous_memory()
    yield
    new = without(anonymous_memory(), before)
    if sum(end - start for start, end in new) >= _WORTH_IT:
        threading.Thread(target=collapse, args=(new,), name="large-pages", daemon=True).start()


def collapse(ranges: list[Range]) -> None:
    """Move whole large pages within the ranges, until the system has no more of them or the memory was freed."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for start, end in ranges:
        for at in range(-(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE, _PIECE):
            size = min(_PIECE, end // _PAGE * _PAGE - at)
            if madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), _COLLAPSE) and ctypes.get_errno() == errno.ENOMEM:
                return


def anonymous_memory() -> list[Range]:
    """This process's own writable memory but stacks, by address; empty where the system does not tell."""
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
        guard = end if rights == b"---p" and end - start <= _GUARD else 0
    return found


def without(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """What of `ranges` lies in none of `taken`; both by address."""
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
