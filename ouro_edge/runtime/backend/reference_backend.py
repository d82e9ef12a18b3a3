"""The backend that NumPy computes in float32: the oracle behind the same interface. Slow; needs no onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch import reference
from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import Stack, loop_program
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup


class ReferenceBackend:
    """A model from float32 weights, under the names of `ouro_edge.arch.weights`."""

    kv = "fp32"
    rows_per_call = 128
    slots = 1

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], *, share_kv: bool = False) -> None:
        self.config, self.program = config, loop_program(config, share_kv=share_kv)
        self.state_id = "reference-" + sha256(repr(sorted(config.to_dict().items())).encode()).hexdigest()
        self._weights = weights

    def new_cache(self, index: int) -> ReferenceCache:
        """An empty cache number `index` of the loop program."""
        return ReferenceCache(self.config, self.program.stack_of(index))

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """Compute the groups one after the other."""
        outputs = []
        for group in groups:
            if cancel is not None:
                cancel.check()
            stop = group.start + len(group.rows)
            cos, sin = (table[group.start :] for table in reference.rope_tables(self.config, stop))
            cache: ReferenceCache = group.cache
            prefix = stop if group.bidirectional else 0
            states = reference.run_pass(
                self.config, self._weights, cache.stack, group.rows, cos, sin, cache.extends(group.start), prefix
            )
            gates = np.full(len(states), np.nan)
            if self.config.has_gate:
                gates = reference.gate(self._weights, states)
            outputs.append(GroupOutput(states, gates.astype(np.float32)))
        return outputs

    def embed(self, ids: Sequence[int], start: int = 0) -> Array:
        """State rows [T, W] of token ids."""
        second = self.program.second
        rows: Array = self._weights["embedding"][np.asarray(ids)].astype(np.float32)
        return self.program.first_rows(rows, self._weights[second] if second else None, start)

    def head(self, rows: Array) -> Array:
        """Logits [T, V] of normed state rows [T, W]."""
        return reference.head(self._weights, self.program.output(rows, self.config.hidden_size))


class ReferenceCache:
    """Keys and values of one pass of one sequence, in float32 arrays [S, KV, D], a pair per layer."""

    def __init__(self, config: ModelConfig, stack: Stack) -> None:
        self._config, self.stack = config, stack
        self._arrays: list[Array] = []
        self.reserve(0)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(array.nbytes for array in self._arrays)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions that the caller will fill; earlier contents are lost."""
        shape = (length, self._config.num_kv_heads, self._config.head_dim)
        self._arrays = [np.zeros(shape, np.float32) for _ in range(2 * len(self.stack.layers))]

    def valid(self, length: int) -> list[NDArray[Any]]:
        """The first `length` positions of every array, as views [length, KV, D]."""
        return [array[:length] for array in self._arrays]

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        """Copy the first `length` positions from arrays as `valid` returns them."""
        for mine, array in zip(self._arrays, arrays, strict=True):
            mine[:length] = array

    def extends(self, start: int) -> list[reference.Extend]:
        """For each layer, what appends keys and values after position `start` and returns all up to there."""

        def extend_layer(layer: int) -> reference.Extend:
            def extend(keys: Array, values: Array) -> tuple[Array, Array]:
                for place, new in ((2 * layer, keys), (2 * layer + 1, values)):
                    self._arrays[place] = np.concatenate([self._arrays[place][:start], new])
                return self._arrays[2 * layer], self._arrays[2 * layer + 1]

            return extend

        return [extend_layer(layer) for layer in range(len(self.stack.layers))]
