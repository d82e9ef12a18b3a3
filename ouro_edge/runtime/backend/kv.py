"""Keys and values of one loop of one sequence, in NumPy buffers that onnxruntime appends to in place.

The type is fp32, int8 or int4 (two values per byte); quantised types need scales, see `ouro_edge.bundle.kv_ranges`.
GroupQueryAttention writes new positions into the past buffer when past and present are the same memory, so nothing is
copied per call. Buffers grow by half, separately for each loop; a loop that has not run has no buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.errors import ContextOverflowError
from ouro_edge.runtime.backend.session import import_onnxruntime
from ouro_edge.system.memory import available_memory

_FIRST_CAPACITY_TOKENS = 64
_DTYPES = {"fp32": np.float32, "int8": np.int8, "int4": np.uint8}
KV_TYPES = tuple(_DTYPES)
_MAX_CODE = {"int8": 127.0, "int4": 7.0}
# Shares of the ranges of keys and values that the codes cover. Ranges include headroom for 8 bits. At 4 bits a smaller
# step gains more than clipping rare extremes costs (figures in docs/log.md).
_RANGE_SHARES = {"int8": (1.0, 1.0), "int4": (0.76, 0.62)}
_RESERVED_BYTES = 64 << 20  # memory that a growing cache leaves free


def kv_bytes_per_token(config: ModelConfig, kv: str) -> int:
    """Bytes of one token in the caches after all passes."""
    return loop_program(config).cached_layers * kv_bytes_per_layer(config, kv)


def kv_bytes_per_layer(config: ModelConfig, kv: str) -> int:
    """Bytes of one token's key and value in one layer."""
    return 2 * config.num_kv_heads * _width(config, kv) * np.dtype(_DTYPES[kv]).itemsize


def scales_of(ranges: Array, kv: str) -> Array:
    """Scales of one loop [L, 2, KV * D] from its ranges [L, 2, KV, D]; a constant zero channel gets a tiny scale."""
    reach = np.array(_RANGE_SHARES[kv], np.float32)[None, :, None] / np.float32(_MAX_CODE[kv])
    return np.maximum(ranges.reshape(len(ranges), 2, -1) * reach, np.float32(1e-12))


class KVBuffers:
    """Buffers [1, KV, capacity, D]: a key and a value per layer. The caller knows how many positions are valid."""

    def __init__(self, config: ModelConfig, layers: int, kv: str = "fp32", all_layers: int | None = None) -> None:
        self._config, self._kv, self._layers = config, kv, layers
        self._all_layers = all_layers or layers  # of all caches of a sequence
        self.capacity = 0
        self._growing = False  # buffers differ in size, or some are not bound: an exception has ended `reserve`
        # Key of layer 0, value of layer 0, key of layer 1, ...
        self.arrays: list[NDArray[Any]] = [np.empty(0)] * (2 * layers)

    def reserve(self, length: int, valid: int, bind: Callable[[str, Any], None]) -> None:
        """Make room for `length` positions, keeping the first `valid`.

        Every new buffer is handed to `bind` at once, as ("0.key", OrtValue), ("0.value", ...): with that the old one is
        free, so that growing needs one buffer more and not twice the cache. ContextOverflowError when the machine has
        no memory for it. After another exception (Ctrl-C, MemoryError) the content is intact, and the next call brings
        all buffers to one size before anything uses them.
        """
        if length <= self.capacity and not self._growing:
            return
        capacity = self.capacity if length <= self.capacity else self._grown_capacity(length)
        ort = import_onnxruntime()
        shape = (1, self._config.num_kv_heads, capacity, _width(self._config, self._kv))
        self._growing = True
        for i in range(2 * self._layers):
            if self.arrays[i].shape != shape:
                grown = np.empty(shape, _DTYPES[self._kv])
                if valid:
                    grown[:, :, :valid] = self.arrays[i][:, :, :valid]
                self.arrays[i] = grown
            bind(f"{i // 2}.{('key', 'value')[i % 2]}", ort.OrtValue.ortvalue_from_numpy(self.arrays[i]))
        self.capacity = capacity
        self._growing = False

    def valid(self, length: int) -> list[NDArray[Any]]:
        """The first `length` positions of every buffer, as views [KV, length, D]."""
        return [array[0, :, :length] if length else array[:0] for array in self.arrays]

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        """Copy the first `length` positions in, from arrays as `valid` gives them; room must be reserved."""
        if length:
            for mine, array in zip(self.arrays, arrays, strict=True):
                mine[0, :, :length] = array

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return sum(array.nbytes for array in self.arrays)

    def _grown_capacity(self, length: int) -> int:
        """Positions to have room for when `length` are needed. ContextOverflowError without the memory."""
        most = max(length, self._config.max_positions)
        capacity = min(max(_FIRST_CAPACITY_TOKENS, length, self.capacity + self.capacity // 2), most)
        if not self._fits(capacity):
            capacity = min(length + _FIRST_CAPACITY_TOKENS, most)
            if not self._fits(capacity):
                raise ContextOverflowError(self._too_much(capacity))
        return capacity

    def _fits(self, capacity: int) -> bool:
        more = (capacity - self.capacity) * self._layers * self._per_layer
        return more <= max(0, available_memory() - _RESERVED_BYTES)

    def _too_much(self, capacity: int) -> str:
        need, free = capacity * self._all_layers * self._per_layer, available_memory()
        return (
            f"{capacity} tokens need {need / 1e9:.2g} GB of {self._kv} keys and values; {free / 1e9:.2g} GB are free: "
            "use --kv int8 or int4, or a smaller --ctx"
        )

    @property
    def _per_layer(self) -> int:
        return kv_bytes_per_layer(self._config, self._kv)


def _width(config: ModelConfig, kv: str) -> int:
    return cache_head_dim(config) // (2 if kv == "int4" else 1)
