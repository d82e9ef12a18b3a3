"""Keys and values of one loop of one sequence, in NumPy buffers that onnxruntime appends to in place.

GroupQueryAttention writes new positions into the past buffer when past and present are the same memory, so nothing is
copied per call. Buffers grow by half, one at a time, and each loop's on its own: a loop that nobody asks for has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ouro_edge.bundle import cache_head_dim
from ouro_edge.config import ModelConfig
from ouro_edge.runtime.session import import_onnxruntime
from ouro_edge.weights import Array

_FIRST = 64  # positions


class LoopKV:
    """Buffers [1, KV, capacity, D], a key and a value for each layer; which positions are valid is the frontier's."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.capacity = 0
        self._arrays: list[Array] = []
        self._values: list[Any] = []  # OrtValues over the same memory

    def reserve(self, length: int, valid: int) -> bool:
        """Make room for `length` positions, keeping the first `valid`. True when the buffers are new."""
        if length <= self.capacity:
            return False
        capacity = min(max(_FIRST, length, self.capacity + self.capacity // 2), max(length, self._config.max_positions))
        ort = import_onnxruntime()
        shape = (1, self._config.num_kv_heads, capacity, cache_head_dim(self._config))
        for i in range(2 * self._config.num_layers):
            grown = np.empty(shape, np.float32)
            if valid:
                grown[:, :, :valid] = self._arrays[i][:, :, :valid]
            value = ort.OrtValue.ortvalue_from_numpy(grown)
            if self.capacity:  # replace one by one: the peak is one buffer more, not twice the cache
                self._arrays[i], self._values[i] = grown, value
            else:
                self._arrays.append(grown)
                self._values.append(value)
        self.capacity = capacity
        return True

    def bindings(self) -> Iterator[tuple[str, Any]]:
        """("0.key", OrtValue), ("0.value", OrtValue), ("1.key", ...) in layer order."""
        for i in range(self._config.num_layers):
            yield f"{i}.key", self._values[2 * i]
            yield f"{i}.value", self._values[2 * i + 1]

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return sum(array.nbytes for array in self._arrays)
