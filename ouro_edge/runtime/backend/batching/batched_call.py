"""One call of the batched block: many row groups, each over its own KV cache. Bindings are kept between calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ouro_edge.runtime.backend.batching.prompt_budget import PROMPT_ROWS
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.kv import KVBuffers
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup
from ouro_edge.runtime.backend.session import import_onnxruntime

if TYPE_CHECKING:
    from ouro_edge.runtime.backend.onnx_backend import OnnxBackend
    from ouro_edge.runtime.backend.onnx_cache import OnnxCache


class BatchedCall:
    """The binding of a batched session with all its slots. Safe to use from several threads, which take turns."""

    def __init__(self, backend: OnnxBackend, session: Any, dummy: DummyCache, slots: int, prompts: bool) -> None:
        self._backend, self._session, self._dummy = backend, session, dummy
        self._prompts = prompts  # whether the session has attention for one prompt, in slot 0
        self._wrap = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._binding = backend.new_binding(session)
        self._seqlens = [np.zeros(1, np.int32) for _ in range(slots)]
        self._totals = [np.zeros((), np.int32) for _ in range(slots)]
        self._slot_rows = np.zeros(slots + 1, np.int64)
        self._total_rows = np.zeros(1, np.int64)
        self._used = np.zeros((), np.int64)
        self._values: dict[str, Any] = {}  # OrtValues of the arrays above
        for name, array in (("slot_rows", self._slot_rows), ("total_rows", self._total_rows), ("slots", self._used)):
            self._bind(name, array)
        if backend.config.prefix_lm:
            self._bind("bidirectional", np.zeros(1, bool))  # prefixes have calls of their own
        self._lock = threading.Lock()  # of the binding
        # Cache and its version, by slot. The binding keeps the cache's buffers alive, the weak reference tells when the
        # sequence itself no longer does.
        self._bound: list[tuple[Any, int]] = [(_nothing, -1)] * slots
        for slot in range(slots):
            self._bind(f"seqlens_k.{slot}", self._seqlens[slot])
            self._bind(f"total_length.{slot}", self._totals[slot])
        self._rope: Any = None
        self._rows = -1
        self._hidden = self._out = self._gate = np.empty((0, 0, 0), np.float32)

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """Compute at most as many groups as there are slots; the outputs are copies."""
        order = list(range(len(groups)))
        longest = max(order, key=lambda i: len(groups[i].rows))
        prompt = self._prompts and len(groups[longest].rows) > PROMPT_ROWS
        if prompt:
            order[0], order[longest] = longest, 0  # an exchange, which undoes itself
        with self._lock:
            outputs = self._run([groups[i] for i in order], prompt, cancel)
        return [outputs[i] for i in order]

    def release(self, growing: OnnxCache | None = None) -> None:
        """Free the buffers of dropped sequences, and the old ones of a cache that is about to grow."""
        with self._lock:
            for slot, (bound, _) in enumerate(self._bound):
                if bound() in (None, growing):
                    self._bind_cache(slot, self._dummy)

    def _run(self, groups: Sequence[RowGroup], prompt: bool, cancel: Cancel | None) -> list[GroupOutput]:
        total = sum(len(group.rows) for group in groups)
        self._bind_rows(total)
        self._slot_rows[:] = 0
        fanned_out = len(groups) - prompt
        self._slot_rows[-1] = fanned_out  # dummy rows that no slot takes
        self._total_rows[0], self._used[...] = total, -fanned_out if prompt else fanned_out
        ends = []
        start = 0
        for slot in range(len(self._bound)):
            if slot < len(groups):
                group = groups[slot]
                rows, length, cache = len(group.rows), group.start + len(group.rows), group.cache
                self._hidden[0, start : start + rows] = group.rows
                start += rows
                ends.append(start)
            else:
                rows, length, cache = 1, 1, self._dummy
            self._slot_rows[slot] = rows
            self._seqlens[slot][0], self._totals[slot][...] = length - 1, length
            self._bind_cache(slot, cache)
        rope = self._backend.rope(max(group.start + len(group.rows) for group in groups))
        if rope is not self._rope:
            self._binding.bind_ortvalue_input("cos_cache", rope[0])
            self._binding.bind_ortvalue_input("sin_cache", rope[1])
            self._rope = rope  # after the bindings: an exception between them makes it bind again
        self._backend.call(self._session, self._binding, cancel)
        parts = zip([0, *ends[:-1]], ends, strict=True)
        return [GroupOutput(self._out[0, a:b].copy(), self._gate[0, a:b, 0].copy()) for a, b in parts]

    def _bind(self, name: str, array: Any) -> None:
        self._values[name] = self._wrap(array)
        self._binding.bind_ortvalue_input(name, self._values[name])

    def _bind_cache(self, slot: int, cache: Any) -> None:
        bound, version = self._bound[slot]
        if bound() is cache and version == cache.version:
            return
        self._bound[slot] = _nothing, -1  # until all is bound, in case of an exception
        for name, value in cache.buffers.items():
            self._binding.bind_ortvalue_input(f"past.{name}.{slot}", value)
            self._binding.bind_ortvalue_output(f"present.{name}.{slot}", value)
        self._backend.bind_scales(self._binding, cache.index, f".{slot}")
        self._bound[slot] = weakref.ref(cache), cache.version

    def _bind_rows(self, count: int) -> None:
        if count == self._rows:
            return
        self._rows, width = -1, self._backend.program.width
        self._hidden, self._out = (np.empty((1, count, width), np.float32) for _ in range(2))
        self._gate = np.full((1, count, 1), np.nan, np.float32)
        self._binding.bind_ortvalue_input("hidden", self._wrap(self._hidden))
        self._binding.bind_ortvalue_output("hidden_out", self._wrap(self._out))
        if self._backend.config.has_gate:
            self._binding.bind_ortvalue_output("exit_logit", self._wrap(self._gate))
        self._rows = count


def _nothing() -> None:
    """Stands for a weak reference to no cache."""


class DummyCache:
    """The cache of slots that have no group: one position, written and never read."""

    version = 0

    def __init__(self, backend: OnnxBackend, graph: str) -> None:
        self.buffers: dict[str, Any] = {}
        self.index = backend.program.cache_of(graph)  # whose scales it has
        kv = KVBuffers(backend.config, len(backend.program.stack(graph).layers), backend.kv)
        kv.reserve(1, 0, self.buffers.__setitem__)
        self._kv = kv
