"""An exit gate fitted to one bundle, in a file beside the graphs. Knows the bundle; `gates` fits it.

The graph keeps the checkpoint's gate; the runtime binds this one over it. Quantisation moves the hidden states, so a
fitted gate belongs to the weights that it was fitted on and names their checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.config import parse_json_object
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import DATA_FILE, Bundle
from ouro_edge.errors import BundleError, RequestError
from ouro_edge.system.files import atomic_write
from ouro_edge.system.numbers import is_number

GATE_FILE = "exit_gate.json"
_LARGEST = float(np.finfo(np.float32).max)
_VERSION = 1


@dataclass(frozen=True, slots=True)
class FittedGate:
    """The numbers of a gate, and the exit threshold that was chosen with it."""

    weight: Array  # [C]
    bias: float
    threshold: float | None = None  # None: the checkpoint's own
    report: Mapping[str, Any] = field(default_factory=dict)  # how it was fitted and what it gained, for people


def write_gate(bundle: Bundle, gate: FittedGate) -> Path:
    """Store a gate in a bundle, replacing an earlier fitted one; the checkpoint's own stays in the graph."""
    file = bundle.path / GATE_FILE
    data = gate_record(gate, bundle.manifest.files[DATA_FILE]["sha256"])
    try:
        with atomic_write(file) as content:
            content.write(json.dumps(data).encode() + b"\n")
    except OSError as problem:
        raise BundleError(f"{file} cannot be written: {problem}; the old gate is still there") from None
    return file


def gate_record(gate: FittedGate, weights: str) -> dict[str, Any]:
    """The content of the file of a gate that was fitted on the weights with this checksum."""
    return {
        "format": "ouro-edge exit gate",
        "version": _VERSION,
        "fitted_on": weights,
        "threshold": gate.threshold,
        "report": dict(gate.report),
        "bias": float(gate.bias),
        "weight": [float(value) for value in gate.weight],
    }


def choose_gate(bundle: Bundle, gate: str) -> FittedGate | None:
    """The fitted gate that "auto" takes where there is one; None, the one in the graph, for "original"."""
    return read_gate(bundle) if check_gate(gate) == "auto" else None


def check_gate(gate: str) -> str:
    """`gate`, if it says which gate to use. RequestError otherwise."""
    if gate not in ("auto", "original"):
        raise RequestError(f"gate is {gate!r}; wanted 'auto' (the fitted one where there is one) or 'original'")
    return gate


def read_gate(bundle: Bundle) -> FittedGate | None:
    """The bundle's fitted gate, None when it has none. BundleError when the file is damaged or of other weights."""
    file = bundle.path / GATE_FILE
    if (content := bundle.measured(GATE_FILE)) is None:
        return None
    data = parse_json_object(content, str(file), BundleError)
    if data.get("format") != "ouro-edge exit gate" or data.get("version") != _VERSION:
        raise BundleError(f"{file} is no exit gate of version {_VERSION}: fit it again, or delete it")
    if data.get("fitted_on") != bundle.manifest.files[DATA_FILE]["sha256"]:
        raise BundleError(f"{file} was fitted to other weights: fit it again, or delete it")
    weight, bias, threshold = (data.get(name) for name in ("weight", "bias", "threshold"))
    numbers: list[Any] = [*weight, bias] if isinstance(weight, list) else []
    if len(numbers) != bundle.config.hidden_size + 1 or not all(is_number(number, _LARGEST) for number in numbers):
        raise BundleError(f"{file} does not hold {bundle.config.hidden_size} finite weights and a bias: fit it again")
    if threshold is not None and not (is_number(threshold) and 0.0 <= threshold <= 1.0):
        raise BundleError(f"{file} has threshold {threshold!r}; wanted 0 to 1: fit it again")
    return FittedGate(np.array(weight, np.float32), float(numbers[-1]), threshold, data.get("report") or {})
