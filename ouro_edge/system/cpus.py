"""How many threads are worth starting. Knows the process's CPU affinity."""

from __future__ import annotations

import os


def available_threads() -> int:
    """CPUs that this process may run on: on Linux those of its affinity, not all of the machine's.

    A quota of CPU time, as `docker --cpus` sets, does not count.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
