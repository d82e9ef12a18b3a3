"""How much memory this process may still take: of the machine, of its containers, of its own limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes that may be taken without swapping; what files merely have cached counts as free."""
    import psutil

    process = psutil.Process()
    free: int = min([psutil.virtual_memory().available, *_of_containers()])
    if sys.platform == "linux":
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        if limit != psutil.RLIM_INFINITY:
            free = min(free, max(0, limit - process.memory_info().vms))
    return free


def _of_containers() -> Iterator[int]:
    """What the limits of this process's control groups (version 2) leave, the own one's and those around it."""
    try:
        own = next(line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    group = _CGROUPS / own.strip("/")
    for path in (group, *group.parents):
        if path.is_relative_to(_CGROUPS):
            try:
                limit, used = (int((path / name).read_text()) for name in ("memory.max", "memory.current"))
                stat = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(stat["inactive_file"]) + int(stat["active_file"]))
            except (OSError, ValueError, KeyError):  # "max": no limit
                continue
