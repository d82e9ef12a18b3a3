"""What `bench --tune` found on this machine, in the user's cache: the command writes it, the runtime reads it.

Only the thread count is used unasked, because it changes no result. A file that is absent, damaged, or of another
version, machine or onnxruntime counts as none, and the defaults hold.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ouro_edge.arch.config import read_json_object
from ouro_edge.errors import ExportError, OuroEdgeError
from ouro_edge.system.cache_dir import cache_directory
from ouro_edge.system.files import atomic_write

TUNED_FILE = "tune.json"
_VERSION = 1


def cpu_name() -> str:
    """What this machine calls its CPU; boards whose CPU has no name give their own."""
    for file, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        if line := next((line for line in lines if line.startswith(key)), ""):
            return line.removeprefix(key).strip(" \t:\0")
    return platform.processor() or platform.machine()


def tuned_threads(cpus: int, onnxruntime: str) -> int | None:
    """The thread count found best for a process that may use `cpus` CPUs; None when nothing valid was found."""
    try:
        found = read_json_object(cache_directory() / TUNED_FILE, OuroEdgeError)
    except (OuroEdgeError, RuntimeError):  # RuntimeError: no home directory, so no cache
        return None
    threads, measured = found.pop("threads", None), found.pop("measured", None)
    if found != _machine(cpus, onnxruntime) or not isinstance(measured, dict):
        return None
    return threads if type(threads) is int and 1 <= threads <= cpus else None


def save_tuned(threads: int, cpus: int, onnxruntime: str, measured: Mapping[str, Any]) -> Path:
    """Write the file, all or nothing; `measured` is there for people to read. ExportError when it cannot be written."""
    content = json.dumps(_machine(cpus, onnxruntime) | {"threads": threads, "measured": measured}, indent=1)
    try:
        path = cache_directory() / TUNED_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content.encode())
    except (OSError, RuntimeError) as problem:
        raise ExportError(f"what was found cannot be kept: {problem}; set OURO_EDGE_CACHE to a folder") from None
    return path


def _machine(cpus: int, onnxruntime: str) -> dict[str, Any]:
    return {"version": _VERSION, "cpu": cpu_name(), "cpus": cpus, "onnxruntime": onnxruntime}
