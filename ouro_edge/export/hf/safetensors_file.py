"""Writes a .safetensors file piece by piece, so that a model larger than memory can be written.

The library's own function takes all tensors of a file at once. Layout: the length of the header as 8 bytes, the header
(JSON, padded with spaces to a multiple of 8), the tensors without gaps in the order of the header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What the header says of a tensor."""

    dtype: str  # a key of ITEM_SIZES
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def write_safetensors(
    path: Path,
    entries: Mapping[str, TensorEntry],
    pieces: Iterable[NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write a new file that reaches the disk before the function returns.

    `pieces` are the values of all tensors in the order of `entries`, each array in the type of its tensor.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            little = piece.astype(piece.dtype.newbyteorder("<"), copy=False) if piece.dtype.kind == "f" else piece
            file.write(np.ascontiguousarray(little).view(np.uint8).data)
        if file.tell() != 8 + len(text) + end:
            raise AssertionError(f"{path} has {file.tell()} bytes; its header says {8 + len(text) + end}")
        file.flush()
        os.fsync(file.fileno())
