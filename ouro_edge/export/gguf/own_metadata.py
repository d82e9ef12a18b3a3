"""What is measured on a model and travels in its GGUF file: a fitted exit gate, and KV ranges. Knows our own keys.

All of ours lies under `ouro_edge.`, in metadata arrays, because llama.cpp refuses a file with tensors that it does not
know. The checkpoint's own gate is the affair of `gguf_config` and `gguf_file`.

    ouro_edge.fitted_gate.weight [C], .bias, .threshold (absent: the checkpoint's own)   see `bundle.fitted_gate`
    ouro_edge.kv_ranges [R * L * 2 * KV * D]                                             see `bundle.kv_ranges`
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.fitted_gate import GATE_FILE, FittedGate, gate_record
from ouro_edge.bundle.kv_ranges import ranges_files, ranges_shape
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.config import brief
from ouro_edge.export.gguf.header import Metadata

FITTED_WEIGHT, FITTED_BIAS, FITTED_THRESHOLD = (
    f"ouro_edge.fitted_gate.{name}" for name in ("weight", "bias", "threshold")
)
KV_RANGES = "ouro_edge.kv_ranges"
MEASURED = (FITTED_WEIGHT, FITTED_BIAS, FITTED_THRESHOLD, KV_RANGES)


def measured_metadata(gate: FittedGate | None, ranges: Array | None) -> dict[str, Any]:
    """Metadata that `measured_files` reads back: arrays and Python numbers."""
    pairs: dict[str, Any] = {}
    if gate is not None:
        pairs |= {FITTED_WEIGHT: gate.weight, FITTED_BIAS: np.float32(gate.bias)}
        pairs |= {} if gate.threshold is None else {FITTED_THRESHOLD: np.float32(gate.threshold)}
    if ranges is not None:
        pairs[KV_RANGES] = ranges.reshape(-1)
    return pairs


def measured_files(metadata: Metadata, config: ModelConfig, weights: str) -> dict[str, bytes]:
    """The files that would hold the same beside a bundle whose weights have this checksum.

    CheckpointError when there are too few or too many numbers; what they are is checked where the files are read.
    """
    files: dict[str, bytes] = {}
    if FITTED_WEIGHT in metadata:
        bias, threshold = metadata.get(FITTED_BIAS), metadata.get(FITTED_THRESHOLD)
        if not isinstance(bias, float) or not isinstance(threshold, (float, type(None))):
            raise CheckpointError(
                f"{FITTED_BIAS} is {brief(bias)} and {FITTED_THRESHOLD} {brief(threshold)}; wanted numbers"
            )
        gate = FittedGate(
            _floats(metadata, FITTED_WEIGHT, config.hidden_size),
            bias,
            None if threshold is None else float(str(np.float32(threshold))),
        )
        files[GATE_FILE] = json.dumps(gate_record(gate, weights)).encode()
    if KV_RANGES in metadata:
        shape = ranges_shape(config)
        files |= ranges_files(_floats(metadata, KV_RANGES, int(np.prod(shape))).reshape(shape), {}, weights)
    return files


def _floats(metadata: Metadata, key: str, count: int) -> Array:
    values: NDArray[Any] = np.asarray(metadata[key])
    if values.dtype != np.float32 or values.shape != (count,):
        raise CheckpointError(f"{key} is {brief(metadata[key])}; wanted {count} float32 numbers")
    return values.astype(np.float32)
