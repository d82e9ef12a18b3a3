"""Metadata of ouro-edge in a GGUF file: fitted exit gate and KV ranges.

The values are metadata arrays under `ouro_edge.`, because llama.cpp rejects files with unknown tensors. The keys of the
checkpoint's own gate are in `config`.

    ouro_edge.fitted_gate.weight [C], .bias, .threshold (absent: the checkpoint's own)   see `bundle.fitted_gate`
    ouro_edge.kv_ranges [R * L * 2 * KV * D]                                             see `bundle.kv_ranges`
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.bundle.kv_ranges import ranges_shape
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.config import brief
from ouro_edge.export.gguf.header import Metadata

FITTED_WEIGHT, FITTED_BIAS, FITTED_THRESHOLD = (
    f"ouro_edge.fitted_gate.{name}" for name in ("weight", "bias", "threshold")
)
KV_RANGES = "ouro_edge.kv_ranges"
OWN_KEYS = (FITTED_WEIGHT, FITTED_BIAS, FITTED_THRESHOLD, KV_RANGES)


def own_metadata(gate: FittedGate | None, ranges: Array | None) -> dict[str, Any]:
    """Metadata for `read_fitted_gate` and `read_kv_ranges`: arrays and NumPy numbers."""
    pairs: dict[str, Any] = {}
    if gate is not None:
        pairs |= {FITTED_WEIGHT: gate.weight, FITTED_BIAS: np.float32(gate.bias)}
        pairs |= {} if gate.threshold is None else {FITTED_THRESHOLD: np.float32(gate.threshold)}
    if ranges is not None:
        pairs[KV_RANGES] = ranges.reshape(-1)
    return pairs


def read_fitted_gate(metadata: Metadata, config: ModelConfig) -> FittedGate | None:
    """The fitted gate in a file, or None; `bundle.fitted_gate` checks the values.

    CheckpointError when a value has the wrong type or an array the wrong length.
    """
    if FITTED_WEIGHT not in metadata:
        return None
    bias, threshold = metadata.get(FITTED_BIAS), metadata.get(FITTED_THRESHOLD)
    if not isinstance(bias, float) or not isinstance(threshold, (float, type(None))):
        raise CheckpointError(f"{FITTED_BIAS} is {brief(bias)} and {FITTED_THRESHOLD} {brief(threshold)}; expected "
                              "numbers")  # fmt: skip
    shortest = None if threshold is None else float(str(np.float32(threshold)))  # 0.6, not 0.60000002
    return FittedGate(_floats(metadata, FITTED_WEIGHT, config.hidden_size), bias, shortest)


def read_kv_ranges(metadata: Metadata, config: ModelConfig) -> Array | None:
    """The KV ranges [R, L, 2, KV, D] in a file, or None; errors as for `read_fitted_gate`."""
    if KV_RANGES not in metadata:
        return None
    shape = ranges_shape(config)
    return _floats(metadata, KV_RANGES, int(np.prod(shape))).reshape(shape)


def _floats(metadata: Metadata, key: str, count: int) -> Array:
    values: NDArray[Any] = np.asarray(metadata[key])
    if values.dtype != np.float32 or values.shape != (count,):
        raise CheckpointError(f"{key} is {brief(metadata[key])}; expected {count} float32 numbers")
    return values.astype(np.float32)
