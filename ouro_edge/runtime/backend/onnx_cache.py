"""One KV cache bound to the block's sessions: NumPy rows in, NumPy rows out, through IOBindings that are reused."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.kv import KVBuffers
from ouro_edge.runtime.backend.protocol import GroupOutput
from ouro_edge.runtime.backend.session import import_onnxruntime

if TYPE_CHECKING:
    from ouro_edge.runtime.backend.onnx_backend import OnnxBackend


class OnnxCache:
    """Keys and values of one pass of one sequence, and the calls that append to them."""

    def __init__(self, backend: OnnxBackend, index: int) -> None:
        self._backend, self.index = backend, index
        program = backend.program
        self.graph = program.stack_of(index).name  # the stack whose keys and values these are
        self.version = 0  # changes when the buffers do
        layers = len(program.stack(self.graph).layers)
        self._kv = KVBuffers(backend.config, layers, backend.kv, program.cached_layers)
        self._calls: dict[int, _Call] = {}  # by session
        self.buffers: dict[str, Any] = {}  # OrtValues of the KV buffers, by name

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return self._kv.nbytes

    @property
    def capacity(self) -> int:
        """Positions that the buffers have room for."""
        return self._kv.capacity

    def run(self, rows: Array, start: int, cancel: Cancel | None = None, bidirectional: bool = False) -> GroupOutput:
        """Run the stack on rows [T, W] at positions start..start+T, appending to the KV.

        The output is made of views of buffers that the next call of the same length overwrites.
        """
        total = start + len(rows)
        self.grow(total, start)
        return self._call_of(self._backend.session_for(len(rows), self.graph))(rows, total, cancel, bidirectional)

    def time(self, session: Any, count: int, context: int = 128) -> float:
        """Seconds of a call of a session with `count` rows after `context` positions: the least of three."""
        self.grow(context + count, 0)
        rows, call, times = np.ones((count, self._backend.program.width), np.float32), self._call_of(session), []
        for _ in range(4):
            began = time.perf_counter()
            call(rows, context + count, None)
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def _call_of(self, session: Any) -> _Call:
        call = self._calls.get(id(session))
        if call is None:
            call = _Call(self._backend, session, self)
            for name, value in self.buffers.items():
                call.bind_kv(name, value)
            self._calls[id(session)] = call  # complete: an exception above leaves none that is bound in part
        return call

    def grow(self, length: int, valid: int) -> None:
        """Make room for `length` positions, keeping the first `valid`."""
        self._kv.reserve(length, valid, self._bind_kv)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions that the caller will fill; earlier contents are lost."""
        self._kv.reserve(length, 0, self._bind_kv)

    def valid(self, length: int) -> list[NDArray[Any]]:
        """The first `length` positions of every buffer, as views [KV, length, D]."""
        return self._kv.valid(length)

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        """Copy the first `length` positions from arrays as `valid` returns them; room must be reserved."""
        self._kv.fill(length, arrays)

    def _bind_kv(self, name: str, value: Any) -> None:
        self.buffers[name] = value
        self.version += 1
        for call in self._calls.values():
            call.bind_kv(name, value)


class _Call:
    """A binding of one session, and the buffers of its rows."""

    def __init__(self, backend: OnnxBackend, session: Any, cache: OnnxCache) -> None:
        self._backend, self._session = backend, session
        self._wrap = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._binding = backend.new_binding(session)
        # The suffix ends the names of what belongs to a cache.
        self._suffix, self._kept = backend.bind_spare_slots(session, self._binding, cache.graph)
        backend.bind_scales(self._binding, cache.index, self._suffix)
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._binding.bind_ortvalue_input("seqlens_k" + self._suffix, self._wrap(self._seqlens))
        self._bidirectional = np.zeros(1, bool)
        if backend.config.prefix_lm:
            self._binding.bind_ortvalue_input("bidirectional", self._wrap(self._bidirectional))
        self._total_value = self._wrap(self._total)
        self._binding.bind_ortvalue_input("total_length" + self._suffix, self._total_value)
        self._rope: Any = None
        self._shape: tuple[int, ...] = ()
        self._hidden = self._out = self._gate = np.empty((0, 0, 0), np.float32)

    def __call__(self, rows: Array, total: int, cancel: Cancel | None, bidirectional: bool = False) -> GroupOutput:
        rope = self._backend.rope(total)
        if rope is not self._rope:
            self._binding.bind_ortvalue_input("cos_cache", rope[0])
            self._binding.bind_ortvalue_input("sin_cache", rope[1])
            self._rope = rope  # after the bindings, as in `_bind_rows`: an exception between them makes it bind again
        if rows.shape != self._shape:
            self._bind_rows(rows.shape)
        self._hidden[0] = rows
        self._seqlens[0] = total - 1
        self._total[...] = total
        self._bidirectional[0] = bidirectional
        self._backend.call(self._session, self._binding, cancel)
        return GroupOutput(self._out[0], self._gate[0, :, 0])

    def bind_kv(self, name: str, value: Any) -> None:
        """Let the session append to one buffer."""
        self._binding.bind_ortvalue_input("past." + name + self._suffix, value)
        self._binding.bind_ortvalue_output("present." + name + self._suffix, value)

    def _bind_rows(self, shape: tuple[int, ...]) -> None:
        length, width = shape
        self._shape = ()
        self._hidden, self._out = (np.empty((1, length, width), np.float32) for _ in range(2))
        self._gate = np.full((1, length, 1), np.nan, np.float32)
        self._binding.bind_ortvalue_input("hidden", self._wrap(self._hidden))
        self._binding.bind_ortvalue_output("hidden_out", self._wrap(self._out))
        if self._backend.config.has_gate:
            self._binding.bind_ortvalue_output("exit_logit", self._wrap(self._gate))
        self._shape = shape
