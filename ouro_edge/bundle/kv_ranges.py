"""How far keys and values reach in every loop and layer: what an int8 or int4 cache is scaled by. Knows the bundle.

Measured once by running text through the bundle (`evaluation/calibrate`), stored beside the graphs. Ranges are of float
values [R, L, 2, KV, D]: index 0 of the third axis for keys after rotation, 1 for values. Both halves of a rotary pair
have the same range, the largest length of the pair: rotation by any position keeps within it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig, parse_json_object
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import DATA_FILE, Bundle, cache_head_dim
from ouro_edge.errors import BundleError
from ouro_edge.system.files import atomic_write

RECORD_FILE = "kv_ranges.json"
RANGES_FILE = "kv_ranges.npy"
_VERSION = 2


def ranges_shape(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """Shape [R, L, 2, KV, D] of the ranges of a model, with heads as wide as the cache has them."""
    return config.loops, config.num_layers, 2, config.num_kv_heads, cache_head_dim(config)


def write_ranges(bundle: Bundle, ranges: Array, about: Mapping[str, Any]) -> None:
    """Store ranges in a bundle. BundleError when they are of another shape, not finite, or cannot be written."""
    if ranges.shape != ranges_shape(bundle.config) or not np.isfinite(ranges).all() or (ranges < 0).any():
        raise BundleError(f"KV ranges of shape {list(ranges.shape)} are no finite numbers of shape "
                          f"{list(ranges_shape(bundle.config))}: the model's output is damaged")  # fmt: skip
    try:
        for name, content in ranges_files(ranges, about, bundle.manifest.files[DATA_FILE]["sha256"]).items():
            with atomic_write(bundle.path / name) as file:
                file.write(content)
    except OSError as problem:
        raise BundleError(f"{bundle.path} cannot be written: {problem}; it still works with --kv fp32") from None


def ranges_files(ranges: Array, about: Mapping[str, Any], weights: str) -> dict[str, bytes]:
    """The two files of ranges that were measured on the weights with this checksum, the record last."""
    data = io.BytesIO()
    np.save(data, ranges.astype(np.float32), allow_pickle=False)
    record = {
        "format": "ouro-edge KV ranges",
        "version": _VERSION,
        "fitted_on": weights,
        "sha256": sha256(data.getvalue()).hexdigest(),
        "about": dict(about),
    }
    return {RANGES_FILE: data.getvalue(), RECORD_FILE: json.dumps(record).encode()}


def has_ranges(bundle: Bundle) -> bool:
    """Whether a model was calibrated for a quantised KV cache."""
    return bundle.measured(RECORD_FILE) is not None


def read_ranges(bundle: Bundle) -> Array:
    """The ranges [R, L, 2, KV, D]. BundleError when there are none, or they are damaged or of other weights."""
    again = f"run ouro-edge calibrate {bundle.path}" if bundle.path.is_dir() else "export it to a directory"
    if (content := bundle.measured(RECORD_FILE)) is None:
        raise BundleError(f"{bundle.path} is not calibrated for a quantised KV cache: {again}, or use --kv fp32")
    record = parse_json_object(content, str(bundle.path / RECORD_FILE), BundleError)
    if record.get("version") != _VERSION or record.get("fitted_on") != bundle.manifest.files[DATA_FILE]["sha256"]:
        raise BundleError(f"{bundle.path / RECORD_FILE} belongs to another version or to other weights: {again}")
    shape = ranges_shape(bundle.config)
    try:
        content = bundle.measured(RANGES_FILE) or b""
        if sha256(content).hexdigest() != record.get("sha256"):
            raise ValueError("it differs from its checksum")
        ranges = np.load(io.BytesIO(content), allow_pickle=False)
        if ranges.shape != shape or ranges.dtype != np.float32 or not np.isfinite(ranges).all() or (ranges < 0).any():
            raise ValueError(f"wanted finite numbers of shape {list(shape)}, found {ranges.dtype} {list(ranges.shape)}")
    except ValueError as problem:
        raise BundleError(f"{bundle.path / RANGES_FILE} cannot be used, {problem}: {again}") from None
    return ranges
