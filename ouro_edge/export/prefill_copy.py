"""Writes the prefill copy: the block a second time, with int8 weights and one scale per column, for long prompts.

MatMulNBits is optimised for a few rows. For many rows, an integer product of whole matrices (MatMulIntegerToFloat) is
two to three times as fast. Inputs are rounded to uint8 with a scale per row, so that rows do not affect each other, and
weights to int8 with a scale per column; both are rotated first, so that no channel dominates. The copy is made from the
bundle's weights by a second rounding. It is stored outside the bundle, because it can be regenerated at any time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array, block_tensors, fused_names
from ouro_edge.bundle.bundle import Bundle, GraphInMemory
from ouro_edge.bundle.directory import DATA_FILE, graph_files, sha256
from ouro_edge.bundle.manifest import StoredTensor
from ouro_edge.bundle.prefill_copy import PROBE_FILE, RECORD_FILE, VERSION, is_complete
from ouro_edge.errors import ExportError
from ouro_edge.export.data_file import DataFile
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder, probe_graph
from ouro_edge.quant.rotation import rotate
from ouro_edge.system.progress import Progress

_PIECE_VALUES = 1 << 22  # weights in float32 at the same time


def probe_in_memory() -> GraphInMemory:
    """The graph that tests, before a copy is written, whether this CPU multiplies exactly."""
    return GraphInMemory(Path(PROBE_FILE), probe_graph().SerializeToString(), {})


def write_prefill_copy(bundle: Bundle, out: Path, progress: Progress | None = None) -> None:
    """Write the graphs and weights to the directory `out`, all or nothing. ExportError when it cannot be written."""
    work = out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
        _write(bundle, work, progress)
        if not is_complete(out):
            shutil.rmtree(out, ignore_errors=True)
            work.rename(out)
    except OSError as problem:
        if is_complete(out):
            return  # another process has written the same copy
        raise ExportError(f"{out} cannot be written: {problem.strerror or problem}; use --prefill-weights "
                          "none") from None  # fmt: skip
    finally:
        if work != out:
            shutil.rmtree(work, ignore_errors=True)


def _write(bundle: Bundle, out: Path, progress: Progress | None) -> None:
    tensors: dict[str, StoredTensor] = {}
    snr: dict[str, float] = {}
    names = block_tensors(bundle.tensors)
    with DataFile(out / DATA_FILE) as data:
        for done, name in enumerate(names):
            if progress is not None:
                progress(done, len(names), "preparing long prompts")
            stored = bundle.tensors[name]
            if stored.scheme is None:
                tensors[name] = StoredTensor(
                    stored.shape, None, {"values": data.write(iter([bundle.values(name)]), "float32", stored.shape)}
                )
                continue
            columns, scales, snr[name] = _by_column(bundle, name)
            for part, rows in _parts(bundle.config, name, len(scales)):
                parts = {
                    "columns": data.write(iter([columns[:, rows]]), "int8", columns[:, rows].shape),
                    "column_scales": data.write(iter([scales[rows]]), "float32", scales[rows].shape),
                }
                tensors[part] = StoredTensor((len(scales[rows]), stored.shape[1]), stored.scheme, parts)
        size = data.finish()["size"]
    for file, (stack, kv) in graph_files(bundle.config).items():
        (out / file).write_bytes(block_graph(bundle.config, tensors, kv, PrefillBuilder, stack).SerializeToString())
    (out / PROBE_FILE).write_bytes(probe_graph().SerializeToString())
    graphs = {name: sha256(out / name) for name in (*graph_files(bundle.config), PROBE_FILE)}
    record = {"version": VERSION, "size": size, "sha256": graphs, "snr_db": snr}
    (out / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _parts(config: ModelConfig, name: str, rows: int) -> list[tuple[str, slice]]:
    """Names of what the copy stores separately, with their rows: gate and up; other matrices as a whole."""
    if not name.endswith("gate_up_proj"):
        return [(name, slice(0, rows))]
    gate, up = fused_names(config)[name]
    return [(gate, slice(0, rows // 2)), (up, slice(rows // 2, rows))]


def _by_column(bundle: Bundle, name: str) -> tuple[NDArray[np.int8], Array, float]:
    """Matrix [N, K] -> int8 [K, N] and scales [N] in rotated space, and the signal-to-noise ratio in dB."""
    rows, width = bundle.tensors[name].shape
    columns, scales = np.empty((width, rows), np.int8), np.empty(rows, np.float32)
    signal = noise = 0.0
    step = max(1, _PIECE_VALUES // width)
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        values = rotate(bundle.rows(name, part.start, part.stop))
        scale = np.maximum(np.abs(values).max(axis=1), np.float32(1e-30)) / np.float32(127)
        rounded = np.rint(values / scale[:, None])
        columns[:, part], scales[part] = rounded.astype(np.int8).T, scale
        signal += float(np.square(values).sum(dtype=np.float64))
        noise += float(np.square(rounded * scale[:, None] - values).sum(dtype=np.float64))
    return columns, scales, 10 * float(np.log10(max(signal, 1e-300) / max(noise, 1e-300)))
