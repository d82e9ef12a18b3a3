"""How fast this machine reads memory: the floor under decoding, which reads all weights for every loop. Knows NumPy.

The measure is the largest element of a buffer much larger than any cache, each thread over its own part. Of NumPy's
reductions the maximum of integers does the least work a byte (one vector instruction), so that memory is what it waits
for; sums of floats are up to half slower on one thread. NumPy lets the other threads run meanwhile.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 256 << 20
_REPEATS = 5


def memory_read(threads: int, size: int | None = None) -> float:
    """Bytes read a second by `threads` threads together, the best of a few passes: neighbours only ever slow it."""
    buffer = np.ones((size or _BYTES) // 4, np.int32)  # written once: untouched pages would all be the same one
    parts = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            began = time.perf_counter()
            for largest in [pool.submit(np.max, part) for part in parts]:
                largest.result()
            best = max(best, buffer.nbytes / (time.perf_counter() - began))
    return best
