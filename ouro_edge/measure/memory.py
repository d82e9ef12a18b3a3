"""How much memory this process holds, and held at the most. Asks the system itself: Linux, macOS, Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes in physical memory; pages of mapped files count while they are there."""

    resident: int
    peak: int


def process_memory() -> ProcessMemory:
    """The figures of this process, now."""
    if sys.platform == "win32":
        return _windows()
    if sys.platform == "darwin":
        import resource

        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
        return ProcessMemory(int(shown.stdout) * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return ProcessMemory(resident, peak)


if sys.platform == "win32":

    def _windows() -> ProcessMemory:
        import ctypes

        class Counters(ctypes.Structure):
            """PROCESS_MEMORY_COUNTERS of psapi.h."""

            _fields_ = [
                ("cb", ctypes.c_uint32),
                ("page_faults", ctypes.c_uint32),
                *((name, ctypes.c_size_t) for name in ("peak_working_set", "working_set", "peak_paged", "paged",
                                                        "peak_nonpaged", "nonpaged", "pagefile", "peak_pagefile")),
            ]  # fmt: skip

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
            raise ctypes.WinError(ctypes.get_last_error())
        return ProcessMemory(counters.working_set, counters.peak_working_set)
