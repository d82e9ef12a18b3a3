"""Memory read bandwidth of this machine: the bound on decoding speed, since every loop reads all weights.

Each thread computes the maximum of its part of a buffer much larger than any cache. The maximum of integers is the
NumPy reduction with the least work per byte (one vector instruction), so memory is the bottleneck; sums of floats are
up to half slower on one thread. NumPy releases the interpreter lock meanwhile, so threads run in parallel.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 256 << 20
_REPEATS = 5


def memory_read(threads: int, size: int | None = None) -> float:
    """Bytes per second read by `threads` threads together; best of several passes, as other load only slows it."""
    buffer = np.ones((size or BUFFER_BYTES) // 4, np.int32)  # written, so that each page is real memory
    parts = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            began = time.perf_counter()
            for largest in [pool.submit(np.max, part) for part in parts]:
                largest.result()
            best = max(best, buffer.nbytes / (time.perf_counter() - began))
    return best
