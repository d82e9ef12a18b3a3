"""Resident and peak memory of this process, on Linux, macOS and Windows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes in physical memory; resident pages of mapped files count."""

    resident: int
    peak: int


def process_memory() -> ProcessMemory:
    """The current figures of this process."""
    import psutil

    now = psutil.Process().memory_info()
    if sys.platform == "win32":
        return ProcessMemory(now.rss, now.peak_wset)
    if sys.platform == "darwin":
        import resource

        return ProcessMemory(now.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return ProcessMemory(now.rss, int(fields["VmHWM"].split()[0]) * 1024)  # ru_maxrss would include the parent process
