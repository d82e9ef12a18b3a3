"""One loop of one sequence: NumPy rows in, NumPy rows out, through IOBindings that are made once and reused."""

from __future__ import annotations

from typing import Any

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.block import Block
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.kv import LoopKV
from ouro_edge.runtime.backend.session import import_onnxruntime


class BoundLoop:
    """The KV of one loop (counted from 1) of one sequence, or of all its loops (None), bound to a block."""

    def __init__(self, block: Block, loop: int | None) -> None:
        self._block, self._loop = block, loop
        self.kv = LoopKV(block.config, block.kv, shared=loop is None)
        self._calls: dict[int, _Call] = {}  # by session
        self._buffers: dict[str, Any] = {}  # the KV's OrtValues by name

    def __call__(self, rows: Array, start: int, cancel: Cancel | None = None) -> tuple[Array, Array]:
        """Run the block on rows [T, C] at positions start..start+T, appending to the KV.

        Returns the normed hidden rows [T, C] and exit logits [T] (NaN without a gate): views of buffers that the next
        call of the same length overwrites.
        """
        total = start + len(rows)
        self.kv.reserve(total, start, self._bind_kv)
        session = self._block.session_for(len(rows))
        call = self._calls.get(id(session))
        if call is None:
            call = self._calls[id(session)] = _Call(self._block, session, self._loop)
            for name, value in self._buffers.items():
                call.bind_kv(name, value)
        return call(rows, total, cancel)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions that the caller will fill; what was there is lost."""
        self.kv.reserve(length, 0, self._bind_kv)

    def _bind_kv(self, name: str, value: Any) -> None:
        self._buffers[name] = value
        for call in self._calls.values():
            call.bind_kv(name, value)


class _Call:
    """A binding of one session, and the buffers of its rows."""

    def __init__(self, block: Block, session: Any, loop: int | None) -> None:
        self._block, self._session = block, session
        self._wrap = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._binding = block.new_binding(session, loop)
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._binding.bind_ortvalue_input("seqlens_k", self._wrap(self._seqlens))
        self._total_value = self._wrap(self._total)
        self._binding.bind_ortvalue_input("total_length", self._total_value)
        self._rope: Any = None
        self._shape: tuple[int, ...] = ()
        self._hidden = self._out = self._gate = np.empty((0, 0, 0), np.float32)

    def __call__(self, rows: Array, total: int, cancel: Cancel | None) -> tuple[Array, Array]:
        rope = self._block.rope(total)
        if rope is not self._rope:
            self._rope = rope
            self._binding.bind_ortvalue_input("cos_cache", rope[0])
            self._binding.bind_ortvalue_input("sin_cache", rope[1])
        if rows.shape != self._shape:
            self._bind_rows(rows.shape)
        self._hidden[0] = rows
        self._seqlens[0] = total - 1
        self._total[...] = total
        self._block.call(self._session, self._binding, cancel)
        return self._out[0], self._gate[0, :, 0]

    def bind_kv(self, name: str, value: Any) -> None:
        """Let the session append to one buffer."""
        self._binding.bind_ortvalue_input("past." + name, value)
        self._binding.bind_ortvalue_output("present." + name, value)

    def _bind_rows(self, shape: tuple[int, ...]) -> None:
        length, width = shape
        self._shape = shape
        self._hidden, self._out = (np.empty((1, length, width), np.float32) for _ in range(2))
        self._gate = np.full((1, length, 1), np.nan, np.float32)
        self._binding.bind_ortvalue_input("hidden", self._wrap(self._hidden))
        self._binding.bind_ortvalue_output("hidden_out", self._wrap(self._out))
        if self._block.config.has_gate:
            self._binding.bind_ortvalue_output("exit_logit", self._wrap(self._gate))
