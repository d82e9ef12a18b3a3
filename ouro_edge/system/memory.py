"""Memory available to this process: of the machine, within its control groups and its own limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP_FILE = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes that can be allocated without swapping; the page cache counts as free."""
    import psutil

    process = psutil.Process()
    free: int = min([psutil.virtual_memory().available, *_of_containers()])
    if sys.platform == "linux":
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        if limit != psutil.RLIM_INFINITY:
            free = min(free, max(0, limit - process.memory_info().vms))
    return free


def _of_containers() -> Iterator[int]:
    """Bytes left by the limits of this process's control group (version 2) and its ancestors."""
    try:
        own = next(line[3:] for line in OWN_CGROUP_FILE.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    group = CGROUP_ROOT / own.strip("/")
    for path in (group, *group.parents):
        if path.is_relative_to(CGROUP_ROOT):
            try:
                limit, used = (int((path / name).read_text()) for name in ("memory.max", "memory.current"))
                stat = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(stat["inactive_file"]) + int(stat["active_file"]))
            except (OSError, ValueError, KeyError):  # "max": no limit
                continue
