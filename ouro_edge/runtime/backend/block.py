"""The shared block and the head of a bundle, opened by onnxruntime. `BoundLoop` calls the block.

The block is stateless: which loop it runs is decided by the KV that it is given. Block and head let one call through at
a time, in the order of arrival, because two calls at once would only fight for the same cores.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.reference import rope_tables
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle, Progress, cache_head_dim
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.bundle.kv_ranges import read_ranges
from ouro_edge.errors import BundleError, OuroEdgeError, one_line
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.fair_lock import FairLock
from ouro_edge.runtime.backend.kv import scales_of
from ouro_edge.runtime.backend.prefill_session import PREFILL_ROWS, PrefillSession
from ouro_edge.runtime.backend.session import import_onnxruntime, open_session

_ROWS = 128


class Block:
    """The shared block of a bundle, ready to be called on any sequence's loops."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, gate: FittedGate | None = None, kv: str = "fp32",
        prefill_copy: Path | None = None, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.config, self.kv = bundle.config, kv
        self._gate = gate
        ranges = None if kv == "fp32" else read_ranges(bundle)
        self.state_id = _state_id(bundle, ranges)
        self._session = open_session(bundle.block_graph(kv, progress), threads)
        self._many = None if prefill_copy is None else PrefillSession(prefill_copy, kv, threads)
        self._ort = import_onnxruntime()
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        self._scales: dict[int | None, list[tuple[Any, Any]]] = {}
        if ranges is not None:
            for loop, reach in ((None, ranges.max(axis=0)), *enumerate(ranges, start=1)):
                self._scales[loop] = [(wrap(key), wrap(value)) for key, value in scales_of(reach, kv)]
        self._rope: tuple[Any, Any] = (None, None)
        self._rope_length = 0
        self._rope_lock = threading.Lock()
        self.lock = FairLock()

    @property
    def rows_per_call(self) -> int:
        """How many rows a call may have: enough to share one read of the weights, few enough to bound its memory."""
        return _ROWS if self._many is None else PREFILL_ROWS

    def session_for(self, rows: int) -> Any:
        """The session that is the fastest for so many rows."""
        return (self._many and self._many.session_for(rows)) or self._session

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

    def call(self, session: Any, binding: Any, cancel: Cancel | None) -> None:
        """Run one of the block's sessions on a binding.

        Cancelled when `cancel` fires before or meanwhile; the KV is then as before.
        """
        with self.lock.hold(cancel):
            try:
                if cancel is None:
                    session.run_with_iobinding(binding)
                else:
                    cancel.check()
                    session.run_with_iobinding(binding, cancel.run_options)
            except OuroEdgeError:
                raise
            except Exception as problem:  # onnxruntime's errors share no public base class
                if cancel is not None:
                    cancel.check()
                raise BundleError(f"onnxruntime cannot run this model, export it again: {one_line(problem)}") from None

    def new_binding(self, session: Any, loop: int | None) -> Any:
        """An IOBinding of a session with what never changes: a fitted gate, the loop's KV scales."""
        binding = session.io_binding()
        for i, (key, value) in enumerate(self._scales.get(loop, ())):
            binding.bind_ortvalue_input(f"scale.{i}.key", key)
            binding.bind_ortvalue_input(f"scale.{i}.value", value)
        if self._gate is not None:
            values = {"weight": self._gate.weight[None], "bias": np.array([self._gate.bias], np.float32)}
            for part, value in values.items():
                binding.bind_ortvalue_input(f"exit_gate.{part}.values", self._ort.OrtValue.ortvalue_from_numpy(value))
        return binding


def _state_id(bundle: Bundle, ranges: Array | None) -> str:
    """Names what a cache's content means: the weights, the model's sizes, and the scales of a quantised cache."""
    sizes = replace(bundle.config, max_positions=1, exit_threshold=1.0).to_dict()
    parts = [bundle.weights_id, sorted(sizes.items())]
    digest = sha256(repr(parts).encode())
    digest.update(b"" if ranges is None else np.ascontiguousarray(ranges).tobytes())
    return digest.hexdigest()


class Head:
    """Hidden rows -> logits."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, lock: FairLock | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self._session = open_session(bundle.head_graph(progress), threads)
        self._lock = lock or FairLock()  # the block's, so that its calls and the head's take turns

    def __call__(self, rows: NDArray[np.float32]) -> Array:
        """Logits [T, V] of normed hidden rows [T, C]."""
        try:
            with self._lock.hold():
                logits: Array = self._session.run(["logits"], {"hidden": np.ascontiguousarray(rows, np.float32)})[0]
        except Exception as problem:
            raise BundleError(f"onnxruntime cannot run this model, export it again: {one_line(problem)}") from None
        return logits
