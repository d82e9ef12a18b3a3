"""The CPUs of this machine: how many this process may use, and the name of their model."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def available_threads() -> int:
    """CPUs that this process may run on: on Linux those of its affinity mask, elsewhere all of the machine.

    A quota of CPU time, as set by `docker --cpus`, is not considered.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The CPU's model name; on a board whose CPU has none, the name of the board."""
    for file, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        if line := next((line for line in lines if line.startswith(key)), ""):
            return line.removeprefix(key).strip(" \t:\0")
    return platform.processor() or platform.machine()
