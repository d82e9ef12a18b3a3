"""The manifest of an exported model: position, number format and quantisation error of each tensor.

This module checks the types of all values; `directory` compares them with the model and the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouro_edge.arch.config import ModelConfig
from ouro_edge.bundle.tensors import ArraySpec, TensorSpec
from ouro_edge.quant import Scheme
from ouro_edge.system.numbers import is_whole

VERSION = 1
PAGE = 4096  # bytes; every array of the data file starts on a page boundary, so that onnxruntime can map it
_ERRORS = ([float, float, float], [float, float, type(None)])  # types of a tensor's error: the ratio may be infinite


@dataclass(frozen=True, slots=True)
class StoredArray(ArraySpec):
    """One array in the data file."""

    offset: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorSpec):
    """A tensor in the data file."""

    parts: Mapping[str, StoredArray]
    error: Mapping[str, float | None] | None = None  # quantisation error: max, RMS, SNR in dB


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ouro_edge.json."""

    name: str
    source: Mapping[str, Any]  # origin of the checkpoint: path or repository, revision, storage types
    created_by: str
    recipe: str
    model: ModelConfig
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, Mapping[str, Any]]  # name -> {"size": bytes, "sha256": hex}
    rounding: Mapping[str, Any] = field(default_factory=dict)  # how weights were calibrated; empty: nearest values

    def to_json(self) -> str:
        """The text of the manifest file."""
        tensors = {name: _tensor_to_dict(tensor) for name, tensor in self.tensors.items()}
        head = {"format": "ouro-edge", "version": VERSION, "name": self.name, "created_by": self.created_by}
        body = {"source": dict(self.source), "recipe": self.recipe, "model": self.model.to_dict()}
        if self.rounding:
            body["rounding"] = dict(self.rounding)
        return json.dumps({**head, **body, "files": dict(self.files), "tensors": tensors}, indent=1) + "\n"


def read_manifest(data: Mapping[str, Any]) -> Manifest:
    """Read the object that `Manifest.to_json` wrote. KeyError, TypeError, ValueError or ConfigError when damaged."""
    tensors = {}
    for name, entry in data["tensors"].items():
        scheme = None if entry["scheme"] is None else Scheme.from_dict(entry["scheme"])
        parts = {
            part: StoredArray(str(at["dtype"]), tuple(map(_whole, at["shape"])), offset=_whole(at["offset"]))
            for part, at in entry["parts"].items()
        }
        shape = tuple(map(_whole, entry["shape"]))
        if scheme is not None and len(shape) != 2:
            raise ValueError(f"tensor {name} is quantised but not a matrix")
        error = entry["error"]
        if error is not None and _types(error, "max_error", "rms_error", "snr_db") not in _ERRORS:
            raise ValueError(f"tensor {name} has the error {error!r}")
        tensors[name] = StoredTensor(shape, scheme, parts, error)
    for name, record in data["files"].items():
        if Path(name).name != name or not name.isprintable() or _types(record, "size", "sha256") != [int, str]:
            raise ValueError(f"file record {name!r}")
    return Manifest(
        name=str(data["name"]),
        source=dict(data["source"]),
        created_by=str(data["created_by"]),
        recipe=str(data["recipe"]),
        model=ModelConfig.from_dict(data["model"]),
        tensors=tensors,
        files=data["files"],
        rounding=dict(data.get("rounding", {})),
    )


def _tensor_to_dict(tensor: StoredTensor) -> dict[str, Any]:
    parts = {
        name: {"offset": part.offset, "dtype": part.dtype, "shape": list(part.shape)}
        for name, part in tensor.parts.items()
    }
    scheme = tensor.scheme and tensor.scheme.to_dict()
    return {"shape": list(tensor.shape), "scheme": scheme, "parts": parts, "error": tensor.error}


def _whole(value: Any) -> int:
    if not is_whole(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _types(record: Mapping[str, Any], *names: str) -> list[type]:
    return [type(record[name]) for name in names]
