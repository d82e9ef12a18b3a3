"""Types and shapes of a model's tensors in the layout of its graphs, independent of where the values are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ouro_edge.quant import Scheme

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1"), "int8": np.dtype("i1")}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array that a graph reads."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of the model: `values` when scheme is None, otherwise `packed`, `scales` and perhaps `zero_points`."""

    shape: tuple[int, ...]
    scheme: Scheme | None
    parts: Mapping[str, ArraySpec]

    @property
    def size(self) -> int:
        """Total bytes of all arrays."""
        return sum(part.size for part in self.parts.values())
