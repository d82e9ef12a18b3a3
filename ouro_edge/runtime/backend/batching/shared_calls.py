"""Calls that several generations share: which session computes them, and the release of buffers no longer needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.batching.batched_call import BatchedCall, DummyCache
from ouro_edge.runtime.backend.batching.call_queue import CallQueue
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup

if TYPE_CHECKING:
    from ouro_edge.runtime.backend.onnx_backend import OnnxBackend


class SharedCalls:
    """Runs groups that threads submit meanwhile in one call of the block's session that is fastest for all rows."""

    def __init__(
        self, backend: OnnxBackend, dummies: Mapping[str, DummyCache], run_head: Callable[[Array], Array]
    ) -> None:
        self._backend, self._dummies = backend, dummies  # by graph
        self._calls: dict[int, BatchedCall] = {}  # by id of the session
        self._queue = CallQueue(self._run, run_head, backend.slots, backend.rows_per_call)

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None) -> list[GroupOutput]:
        """Compute the groups, together with others; long prompts in parts while others wait.

        A prompt that sees itself in both directions cannot be split, and has a call of its own.
        """
        if any(group.bidirectional for group in groups):
            return [group.cache.run(group.rows, group.start, cancel, group.bidirectional) for group in groups]
        for group in groups:
            length = group.start + len(group.rows)
            if length > group.cache.capacity:
                self._release(group.cache)
            group.cache.grow(length, group.start)
        graphs = {group.cache.graph for group in groups}
        if len(graphs) > 1:
            return [output for group in groups for output in self._queue.block([group], cancel, group.cache.graph)]
        return self._queue.block(groups, cancel, *graphs)

    def head(self, rows: Array) -> Array:
        """Logits [T, V] of rows [T, W]."""
        return self._queue.head(rows)

    def _release(self, growing: Any = None) -> None:
        for call in list(self._calls.values()):
            call.release(growing)

    def _run(self, groups: list[RowGroup], cancel: Cancel | None) -> list[GroupOutput]:
        """Calls of at most as many groups, all of one graph, as there are slots."""
        if len(groups) == 1:
            self._release()
            (group,) = groups
            return [group.cache.run(group.rows, group.start, cancel)]
        outputs: list[GroupOutput] = []
        for first in range(0, len(groups), self._backend.slots):
            part = groups[first : first + self._backend.slots]
            outputs += self._call(part).run(part, cancel)
        return outputs

    def _call(self, groups: list[RowGroup]) -> BatchedCall:
        rows, graph = sum(len(group.rows) for group in groups), groups[0].cache.graph
        session = self._backend.session_for(rows, graph, max(len(groups), 2))
        if id(session) not in self._calls:
            prompts = self._backend.kv != "fp32" and session is not self._backend.session_for(1, graph, 2)
            self._calls[id(session)] = BatchedCall(
                self._backend, session, self._dummies[graph], self._backend.slots, prompts
            )
        return self._calls[id(session)]
