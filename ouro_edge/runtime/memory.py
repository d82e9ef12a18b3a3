"""How much memory this process may still take: of the machine, of its container, of its own limit."""

from __future__ import annotations

import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that may be taken without swapping; what files merely have cached counts as free."""
    import psutil

    process = psutil.Process()
    free: int = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, max(0, limit - used + int(stat["inactive_file"]) + int(stat["active_file"])))
    except (OSError, ValueError, KeyError):  # no container, or "max": no limit
        pass
    if sys.platform == "linux":
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        if limit != psutil.RLIM_INFINITY:
            free = min(free, max(0, limit - process.memory_info().vms))
    return free
