"""An exit gate that was fitted to one bundle, stored in a file next to the graphs.

The graph contains the checkpoint's gate; the runtime binds the fitted gate in its place. Quantisation changes the
hidden states, so a fitted gate is valid only for the weights that it was fitted on; the file names these weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.sidecar import read_sidecar
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.system.files import atomic_write
from ouro_edge.system.numbers import is_number

GATE_FILE = "exit_gate.json"
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_VERSION = 1


@dataclass(frozen=True, slots=True)
class FittedGate:
    """Weights and bias of a gate, and the exit threshold that was chosen with it."""

    weight: Array  # [C]
    bias: float
    threshold: float | None = None  # None: the checkpoint's own
    report: Mapping[str, Any] = field(default_factory=dict)  # parameters and results of the fit, for information


def write_gate(bundle: Bundle, gate: FittedGate) -> Path:
    """Store a gate in a bundle, in place of an earlier fitted one. The graph keeps the checkpoint's gate.

    BundleError when the file cannot be written.
    """
    file = bundle.writable_directory() / GATE_FILE
    data = _gate_record(gate, bundle.weights_id)
    try:
        with atomic_write(file) as content:
            content.write(json.dumps(data).encode() + b"\n")
    except OSError as problem:
        raise BundleError(f"{file} cannot be written: {problem}; the old gate is still there") from None
    return file


def _gate_record(gate: FittedGate, weights_id: str) -> dict[str, Any]:
    """The content of the file for a gate that was fitted on these weights."""
    return {
        "format": "ouro-edge exit gate",
        "version": _VERSION,
        "fitted_on": weights_id,
        "threshold": gate.threshold,
        "report": dict(gate.report),
        "bias": float(gate.bias),
        "weight": [float(value) for value in gate.weight],
    }


def choose_gate(bundle: Bundle, gate: str) -> FittedGate | None:
    """The gate to bind in place of the graph's: for "auto" the fitted gate, if there is one; for "original" None."""
    return bundle.fitted_gate() if check_gate(gate) == "auto" else None


def check_gate(gate: str) -> str:
    """`gate`, if it is 'auto' or 'original'; RequestError otherwise."""
    if gate not in ("auto", "original"):
        raise RequestError(f"gate is {gate!r}; expected 'auto' (the fitted one where there is one) or 'original'")
    return gate


def read_gate(directory: Path, config: ModelConfig, weights_id: str) -> FittedGate | None:
    """The fitted gate in a directory, or None.

    BundleError when the file is damaged, of another version, or belongs to other weights than `weights_id`.
    """
    file = directory / GATE_FILE
    if (content := read_sidecar(file)) is None:
        return None
    data = parse_json_object(content, str(file), BundleError)
    if data.get("format") != "ouro-edge exit gate" or data.get("version") != _VERSION:
        raise BundleError(f"{file} is not an exit gate of version {_VERSION}: fit it again, or delete it")
    if data.get("fitted_on") != weights_id:
        raise BundleError(f"{file} was fitted to other weights: fit it again, or delete it")
    weight, bias, threshold = (data.get(name) for name in ("weight", "bias", "threshold"))
    check_numbers(weight if isinstance(weight, list) else [], bias, threshold, config, str(file))
    return FittedGate(np.array(weight, np.float32), float(data["bias"]), threshold, data.get("report") or {})


def check_numbers(weight: Sequence[Any], bias: Any, threshold: Any, config: ModelConfig, source: str) -> None:
    """Check that a gate has this model's width, finite values and a valid threshold. BundleError names `source`."""
    if len(weight) != config.hidden_size or not all(is_number(number, _MAX_FLOAT32) for number in (*weight, bias)):
        raise BundleError(f"{source} does not hold {config.hidden_size} finite weights and a bias: fit it again")
    if threshold is not None and not (is_number(threshold) and 0.0 <= threshold <= 1.0):
        raise BundleError(f"{source} has threshold {threshold!r}; expected 0 to 1: fit it again")
