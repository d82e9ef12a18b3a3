"""The backend that onnxruntime computes: the sessions of a bundle's graphs, opened once and shared by all sequences.

The graph of a stack is stateless: the KV cache that it is given decides which pass it computes. One call runs at a
time, in the order of arrival, because two calls at once would compete for the same cores; a graph with several slots
computes groups of several generations in one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.loop_program import BLOCK, loop_program
from ouro_edge.arch.reference import rope_tables
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.batched_graphs import BatchedGraphs
from ouro_edge.bundle.bundle import Bundle, Graph, cache_head_dim
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.bundle.kv_ranges import read_ranges
from ouro_edge.bundle.prefill_copy import prefill_graph
from ouro_edge.errors import BundleError, OuroEdgeError, RequestError, one_line
from ouro_edge.runtime.backend.batching.batched_call import DummyCache
from ouro_edge.runtime.backend.batching.crossover import crossover
from ouro_edge.runtime.backend.batching.shared_calls import SharedCalls
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.fair_lock import FairLock
from ouro_edge.runtime.backend.kv import scales_of
from ouro_edge.runtime.backend.onnx_cache import OnnxCache
from ouro_edge.runtime.backend.prefill_session import MIN_PREFILL_ROWS, PREFILL_ROWS, PrefillSession
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup
from ouro_edge.runtime.backend.session import import_onnxruntime, open_session
from ouro_edge.system.cpus import cpu_name
from ouro_edge.system.huge_pages import PageMove, large_pages
from ouro_edge.system.progress import Progress

# In the batched graph, a call of one group costs about a microsecond more per layer and slot. That is much for a small
# model, so a model of at most this size also opens the graph of one group, with a second packed copy of the weights.
MAX_WEIGHTS_OPENED_TWICE = 64 << 20
ROWS_PER_CALL = 128  # enough to share one read of the weights, few enough to bound the memory of a call


class OnnxBackend:
    """A bundle's block and head in onnxruntime. See `ouro_edge.runtime.backend.protocol.Backend`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        gate: FittedGate | None = None,
        kv: str = "fp32",
        share_kv: bool = False,
        prefill_copy: Path | None = None,
        parallel_packing: bool = True,
        open_head: bool = True,
        batched: BatchedGraphs | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.kv = bundle.config, kv
        self.program = loop_program(bundle.config, share_kv=share_kv)
        self.lock = FairLock()
        ranges = None if kv == "fp32" else read_ranges(bundle)
        self.state_id = _state_id(bundle, ranges)
        self._gate = gate
        self.slots = 1 if batched is None else batched.slots
        self._sessions: dict[str, Any] = {}  # by graph
        self._single: dict[str, Any] = {}  # for calls of one group
        self._prefill: dict[str, PrefillSession] = {}
        self._head: Any = None
        with large_pages() as pages:
            for stack in self.program.stacks:
                self._open_stack(bundle, stack.name, threads, parallel_packing, prefill_copy, batched, progress)
            if open_head:
                self._head = open_session(bundle.head_graph(progress), threads, parallel=parallel_packing)
        self.rows_per_call = PREFILL_ROWS if self._prefill else ROWS_PER_CALL
        self._embedding = bundle.embedding()
        self._second = None if self.program.second is None else bundle.values(self.program.second)
        self._ort = import_onnxruntime()
        self._scales = [] if ranges is None else self._scale_values(ranges)
        self._rope: tuple[Any, Any] = (None, None)
        self._rope_length = 0
        self._rope_lock = threading.Lock()
        self._shared: SharedCalls | None = None
        if self.slots > 1:
            self._dummies = {stack.name: DummyCache(self, stack.name) for stack in self.program.stacks}
            self._shared = SharedCalls(self, self._dummies, self._run_head)
            if prefill_copy is not None:
                self._measure_crossover(prefill_copy, pages)

    def new_cache(self, index: int) -> OnnxCache:
        """An empty cache number `index` of the loop program."""
        return OnnxCache(self, index)

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """Compute the groups; with several slots, together with groups that other threads submit meanwhile."""
        if self._shared is not None:
            return self._shared.run(groups, cancel)
        return [group.cache.run(group.rows, group.start, cancel, group.bidirectional) for group in groups]

    def embed(self, ids: Sequence[int], start: int = 0) -> Array:
        """State rows [T, W] of token ids, made of rows of the memory-mapped embedding."""
        return self.program.first_rows(self._embedding(np.asarray(ids)), self._second, start)

    def head(self, rows: Array) -> Array:
        """Logits [T, V] of normed state rows [T, W]."""
        return self._run_head(rows) if self._shared is None else self._shared.head(rows)

    def _run_head(self, rows: Array) -> Array:
        if self._head is None:
            raise RequestError("this model was opened without its head, so it has no logits")
        rows = np.ascontiguousarray(self.program.output(rows, self.config.hidden_size), np.float32)
        try:
            with self.lock.hold():
                logits: Array = self._head.run(["logits"], {"hidden": rows})[0]
        except Exception as problem:
            raise BundleError(f"onnxruntime cannot run this model, export it again: {one_line(problem)}") from None
        return logits

    def session_for(self, rows: int, graph: str = BLOCK, groups: int = 1) -> Any:
        """The session of a graph that is fastest for this many rows of one or several groups."""
        session = self._prefill[graph].session_for(rows) if self._prefill else None
        if session is None:
            return self._single[graph] if groups == 1 else self._sessions[graph]
        return session

    def call(self, session: Any, binding: Any, cancel: Cancel | None) -> None:
        """Run one of the block's sessions on a binding. Cancelled when `cancel` fires before or during the call."""
        with self.lock.hold(cancel):
            try:
                if cancel is None:
                    session.run_with_iobinding(binding)
                else:
                    cancel.check()
                    session.run_with_iobinding(binding, cancel.handle(self._ort.RunOptions))
            except OuroEdgeError:
                raise
            except Exception as problem:  # onnxruntime's errors share no public base class
                if cancel is not None:
                    cancel.check()
                raise BundleError(f"onnxruntime cannot run this model, export it again: {one_line(problem)}") from None

    def rope(self, length: int) -> tuple[Any, Any]:
        """OrtValues of the cos and sin tables for at least `length` positions; they grow with use."""
        with self._rope_lock:
            if length <= self._rope_length:
                return self._rope
            grown = min(max(length, 2 * self._rope_length, 256), max(length, self.config.max_positions))
            pad = (cache_head_dim(self.config) - self.config.head_dim) // 2
            cos, sin = (np.pad(table, ((0, 0), (0, pad))) for table in rope_tables(self.config, grown))
            wrap = self._ort.OrtValue.ortvalue_from_numpy
            self._rope, self._rope_length = (wrap(cos), wrap(sin)), grown
            return self._rope

    def new_binding(self, session: Any) -> Any:
        """An IOBinding of a session with what never changes: a fitted gate."""
        binding = session.io_binding()
        if self._gate is not None:
            values = {"weight": self._gate.weight[None], "bias": np.array([self._gate.bias], np.float32)}
            for part, value in values.items():
                binding.bind_ortvalue_input(f"exit_gate.{part}.values", self._ort.OrtValue.ortvalue_from_numpy(value))
        return binding

    def bind_scales(self, binding: Any, cache: int, suffix: str) -> None:
        """Bind the KV scales of a cache to a slot; nothing for float32."""
        for i, (key, value) in enumerate(self._scales[cache] if self._scales else ()):
            binding.bind_ortvalue_input(f"scale.{i}.key{suffix}", key)
            binding.bind_ortvalue_input(f"scale.{i}.value{suffix}", value)

    def bind_spare_slots(self, session: Any, binding: Any, graph: str) -> tuple[str, list[Any]]:
        """Bind all slots but the first to a dummy cache, for calls of one group.

        Returns the suffix of the first slot's names, and what must stay alive as long as the binding.
        """
        if self.slots == 1 or (session is self._single[graph] and session is not self._sessions[graph]):
            return "", []
        wrap, dummy = self._ort.OrtValue.ortvalue_from_numpy, self._dummies[graph]
        numbers = {"slot_rows": np.zeros(self.slots + 1, np.int64), "total_rows": np.ones(1, np.int64)}
        numbers["slots"] = np.array(
            int(session is self._sessions[graph]), np.int64
        )  # 0: a prompt, in a prefill session
        for slot in range(1, self.slots):
            numbers[f"seqlens_k.{slot}"], numbers[f"total_length.{slot}"] = np.zeros(1, np.int32), np.array(1, np.int32)
            for name, value in dummy.buffers.items():
                binding.bind_ortvalue_input(f"past.{name}.{slot}", value)
                binding.bind_ortvalue_output(f"present.{name}.{slot}", value)
            self.bind_scales(binding, dummy.index, f".{slot}")
        kept = {name: wrap(number) for name, number in numbers.items()}
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)
        return ".0", list(kept.values())

    def _open_stack(
        self,
        bundle: Bundle,
        stack: str,
        threads: int | None,
        parallel_packing: bool,
        prefill_copy: Path | None,
        batched: BatchedGraphs | None,
        progress: Progress | None,
    ) -> None:
        """Open the sessions of one stack."""
        graph = bundle.block_graph(self.kv, progress, stack) if batched is None else batched.block(self.kv, stack)
        session = open_session(graph, threads, parallel=parallel_packing)
        self._sessions[stack] = self._single[stack] = session
        if batched is not None and graph.weights_bytes <= MAX_WEIGHTS_OPENED_TWICE:
            plain = bundle.block_graph(self.kv, progress, stack)
            self._single[stack] = open_session(plain, threads, parallel=parallel_packing)
        if prefill_copy is not None:
            copy: Callable[[], Graph] = partial(prefill_graph, prefill_copy, self.kv, stack)
            if batched is not None:
                copy = partial(batched.prefill, self.kv, prefill_copy, stack)
            self._prefill[stack] = PrefillSession(copy, threads)
            if batched is not None:
                self._prefill[stack].open()  # shared calls of few rows use it too

    def _measure_crossover(self, copy: Path, pages: PageMove) -> None:
        """Let the prefill sessions serve calls of as few rows as they are faster for on this machine.

        Huge pages change the result, so the weights move to them before it is measured.
        """
        cache = OnnxCache(self, 0)  # the stacks of a model have the same kind of layers, so one of them is measured
        session = self._prefill[cache.graph].open()
        if session is None:
            return
        threads = session.get_session_options().intra_op_num_threads
        machine = f"{cpu_name()}, {threads} threads, onnxruntime {self._ort.__version__}, {self.kv}, {self.slots} slots"
        block = self._sessions[cache.graph]

        def seconds(rows: int) -> tuple[float, float]:
            pages.wait()
            return cache.time(block, rows), cache.time(session, rows)

        rows = crossover(copy, machine, seconds, MIN_PREFILL_ROWS)
        for prefill in self._prefill.values():
            prefill.min_rows = rows

    def _scale_values(self, ranges: Array) -> list[list[tuple[Any, Any]]]:
        """OrtValues of each cache's scales, a pair per layer; one cache for several passes gets the widest range."""
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        passes = self.program.passes
        if self.program.shares_caches:
            widest = [ranges[[i for i, step in enumerate(passes) if step.cache == cache]].max(axis=0)
                      for cache in range(self.program.num_caches)]  # fmt: skip
        else:
            widest = [ranges[self.program.measured_as(cache)] for cache in range(self.program.num_caches)]
        return [
            [(wrap(key), wrap(value)) for key, value in scales_of(reach, self.kv)[: self._layers_of(cache)]]
            for cache, reach in enumerate(widest)
        ]

    def _layers_of(self, cache: int) -> int:
        return len(self.program.stack_of(cache).layers)


def _state_id(bundle: Bundle, ranges: Array | None) -> str:
    """Names what a cache's content means: the weights, the model's sizes, and the scales of a quantised cache."""
    sizes = replace(bundle.config, max_positions=1, exit_threshold=1.0).to_dict()
    parts = [bundle.weights_id, sorted(sizes.items())]
    digest = sha256(repr(parts).encode())
    digest.update(b"" if ranges is None else np.ascontiguousarray(ranges).tobytes())
    return digest.hexdigest()
