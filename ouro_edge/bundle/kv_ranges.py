"""The ranges of keys and values in every pass and layer, from which the scales of an int8 or int4 cache follow.

They are measured once by running text through the bundle (`fitting.calibrate_kv`) and stored next to the graphs. Shape
[R, L, 2, KV, D], float32: index 0 of the third axis for keys after rotation, 1 for values. Both halves of a rotary pair
have the same range, the largest length of the pair, because rotation does not change this length.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle, cache_head_dim
from ouro_edge.bundle.sidecar import read_sidecar
from ouro_edge.errors import BundleError
from ouro_edge.system.files import atomic_write

RECORD_FILE = "kv_ranges.json"
RANGES_FILE = "kv_ranges.npy"
_VERSION = 2


def ranges_shape(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """Shape [R, L, 2, KV, D] of the ranges of a model: R caches of passes, L layers of the largest stack, D as there.

    Entries beyond the layers of a pass's stack are zeros.
    """
    program = loop_program(config)
    return len(program.usual_caches), program.most_layers, 2, config.num_kv_heads, cache_head_dim(config)


def write_ranges(bundle: Bundle, ranges: Array, about: Mapping[str, Any]) -> None:
    """Store ranges in a bundle. BundleError when the shape is wrong, a value is not finite, or writing fails."""
    directory, ranges = bundle.writable_directory(), ranges.astype(np.float32)
    try:
        check_ranges(ranges, bundle.config)
    except ValueError as problem:
        raise BundleError(f"KV ranges cannot be stored, {problem}: the model's output is damaged") from None
    try:
        for name, content in _ranges_files(ranges, about, bundle.weights_id).items():
            with atomic_write(directory / name) as file:
                file.write(content)
    except OSError as problem:
        raise BundleError(f"{bundle.path} cannot be written: {problem}; it still works with --kv fp32") from None


def _ranges_files(ranges: Array, about: Mapping[str, Any], weights_id: str) -> dict[str, bytes]:
    """The two files for ranges that were measured on these weights; the record is the last one."""
    data = io.BytesIO()
    np.save(data, ranges, allow_pickle=False)
    record = {
        "format": "ouro-edge KV ranges",
        "version": _VERSION,
        "fitted_on": weights_id,
        "sha256": sha256(data.getvalue()).hexdigest(),
        "about": dict(about),
    }
    return {RANGES_FILE: data.getvalue(), RECORD_FILE: json.dumps(record).encode()}


def check_ranges(ranges: Array, config: ModelConfig) -> None:
    """ValueError unless `ranges` has this model's shape and finite float32 values."""
    shape = ranges_shape(config)
    if ranges.shape != shape or ranges.dtype != np.float32 or not np.isfinite(ranges).all() or (ranges < 0).any():
        raise ValueError(f"expected finite numbers of shape {list(shape)}, found {ranges.dtype} {list(ranges.shape)}")


def read_ranges(bundle: Bundle) -> Array:
    """The ranges [R, L, 2, KV, D] of a bundle. BundleError when they are missing or not usable."""
    if (ranges := bundle.kv_ranges()) is None:
        again = "export it to a directory" if bundle.directory is None else f"run ouro-edge calibrate {bundle.path}"
        raise BundleError(f"{bundle.path} is not calibrated for a quantised KV cache: {again}, or use --kv fp32")
    return ranges


def is_calibrated(directory: Path) -> bool:
    """Whether a directory contains ranges."""
    return read_sidecar(directory / RECORD_FILE) is not None


def load_ranges(directory: Path, config: ModelConfig, weights_id: str) -> Array | None:
    """The ranges in a directory, or None.

    BundleError when they are damaged, of another version, or belong to other weights than `weights_id`.
    """
    again = f"run ouro-edge calibrate {directory}"
    if (content := read_sidecar(directory / RECORD_FILE)) is None:
        return None
    record = parse_json_object(content, str(directory / RECORD_FILE), BundleError)
    if record.get("version") != _VERSION or record.get("fitted_on") != weights_id:
        raise BundleError(f"{directory / RECORD_FILE} belongs to another version or to other weights: {again}")
    try:
        content = read_sidecar(directory / RANGES_FILE) or b""
        if sha256(content).hexdigest() != record.get("sha256"):
            raise ValueError("its checksum differs from the record's")
        ranges: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        check_ranges(ranges, config)
    except ValueError as problem:
        raise BundleError(f"{directory / RANGES_FILE} cannot be used, {problem}: {again}") from None
    return ranges
