"""Opens onnxruntime sessions with the settings of this runtime. The only module that imports onnxruntime.

Telemetry is switched off before the import (wheels since 1.29 send it on Linux and macOS). The default thread count is
the number of CPUs that the process may use (onnxruntime's default is all CPUs of the machine). Threads stop spinning
when a call returns, so that an idle model uses no CPU.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from ouro_edge.bundle.bundle import Graph, GraphInMemory
from ouro_edge.errors import BundleError, RequestError, one_line
from ouro_edge.system.cpus import available_threads
from ouro_edge.system.memory import available_memory

_MIN_FREE_TO_WEIGHTS_RATIO = 4  # packing in parallel needs 4 times the weights in free memory
_BLOCKWISE_KLEIDIAI = (1, 32)  # onnxruntime, from which KleidiAI's kernels for zero points round activations in blocks


def import_onnxruntime() -> Any:
    """The onnxruntime module; telemetry is off unless the user's environment enables it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def default_threads() -> int:
    """The number of CPUs that this process may use."""
    return available_threads()


def check_threads(threads: int | None) -> None:
    """RequestError unless `threads` is None or 1 to 1024."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise RequestError(f"threads is {threads!r}; expected a whole number from 1 to 1024")


def rounds_whole_rows(graph: Graph, machine: str, onnxruntime_version: str) -> bool:
    """Whether onnxruntime's KleidiAI kernels would round each row of activations with one scale.

    That is several times less accurate than rounding in blocks (docs/boards.md). It happens on ARM64, to 4-bit weights
    without zero points, and before onnxruntime 1.32 to those with zero points too.
    """
    if machine.lower() not in ("arm64", "aarch64"):
        return False
    major, minor = onnxruntime_version.split(".")[:2]
    return (int(major), int(minor)) < _BLOCKWISE_KLEIDIAI or graph.lacks_zero_points


def open_session(graph: Graph, threads: int | None = None, *, parallel: bool = True) -> Any:
    """An InferenceSession on the CPU for a graph file or a graph in memory. BundleError when onnxruntime rejects it.

    The arrays of a graph in memory may be released or overwritten afterwards. With `parallel`, weights are packed in
    parallel if memory is plentiful: that halves the time, but the file's pages stay resident until all are packed.
    """
    check_threads(threads)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # nothing below fatal: errors are raised, and the log would print them once more
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if rounds_whole_rows(graph, platform.machine(), ort.__version__):
        options.add_session_config_entry("mlas.disable_kleidiai", "1")
    if parallel and available_memory() >= _MIN_FREE_TO_WEIGHTS_RATIO * graph.weights_bytes:
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    if isinstance(graph, GraphInMemory) and graph.data is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.data.parent))
    try:
        values = list(map(ort.OrtValue.ortvalue_from_numpy, graph.arrays.values()))
        options.add_external_initializers(list(graph.arrays), values)
        # With its fallback, onnxruntime would print the error on standard output and try the same once more.
        return ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as problem:  # onnxruntime's errors share no public base class
        raise BundleError(
            f"{graph.source} cannot be loaded by onnxruntime {ort.__version__}: {one_line(problem)}"
        ) from None
