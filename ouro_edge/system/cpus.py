"""The CPUs of this machine: how many this process may use, and the name of their model."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")


def available_threads() -> int:
    """CPUs that this process may use: the smaller of its affinity mask (elsewhere the machine's CPUs) and its quota.

    The quota of CPU time is that of its control groups (`docker --cpus`), rounded up to whole CPUs: with 1.5 CPUs, two
    threads do more than one.
    """
    cpus = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    quota = cpu_quota(_PROC)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota - 0.01)))


def cpu_quota(proc: Path) -> float | None:
    """CPUs that the control groups of a process allow on average (version 1 or 2): the least of the group and those
    around it; None without a limit. `proc` is the process's directory in /proc."""
    try:
        groups = _read(proc / "cgroup").splitlines()
        mounts = _read(proc / "mountinfo").splitlines()
    except OSError:
        return None
    paths = {}  # of the group that limits CPU time, by version
    for line in groups:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    limits = []
    for line in mounts:
        mount, _, source = line.partition(" - ")
        fields, (kind, *rest) = mount.split(), source.split() or [""]
        if kind not in paths or len(fields) < 5 or (kind == "cgroup" and "cpu" not in rest[-1].split(",")):
            continue
        root, top = (PurePosixPath(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f)) for f in fields[3:5])
        group = PurePosixPath(paths[kind])
        inner = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()  # a container sees its part
        if ".." in inner.parts:
            inner = PurePosixPath()
        directories = [Path(top, inner), *Path(top, inner).parents][: len(inner.parts) + 1]
        limits += [limit for directory in directories if (limit := _limit(directory)) is not None]
    return min(limits, default=None)


def _limit(directory: Path) -> float | None:
    """The limit of one control group itself."""
    try:
        if (directory / "cpu.max").is_file():
            quota, period = [*_read(directory / "cpu.max").split(), "100000"][:2]
        else:
            quota, period = (_read(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # "max", or no limit at the top
        return None


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


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
