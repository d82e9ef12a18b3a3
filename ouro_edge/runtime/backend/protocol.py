"""The engine interface: a backend computes groups of rows, each over the KV cache of one pass of one sequence.

Exit rules, sampling, speculation, prefix cache and saved sequences use only this. Shapes: T rows of a group, W columns
of a state row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import LoopProgram
from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel


class Cache(Protocol):
    """Keys and values of one pass of one sequence. Which positions are valid is the sequence's knowledge."""

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""

    def reserve(self, length: int) -> None:
        """Make room for `length` positions that the caller will fill; earlier contents are lost."""

    def valid(self, length: int) -> list[NDArray[Any]]:
        """The first `length` positions of every buffer, as views."""

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        """Copy the first `length` positions from arrays as `valid` returns them; room must be reserved."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """State rows of consecutive positions, waiting for the pass that a cache belongs to."""

    cache: Any  # a Cache of the same backend
    start: int  # position of the first row; the cache holds every position before it
    rows: Array  # [T, W]
    version: int = 0  # of the sequence, which refuses outputs of groups that it has dropped since
    bidirectional: bool = False  # whether the rows, which then start at position 0, also see the rows behind them


@dataclass(frozen=True, slots=True)
class GroupOutput:
    """What a pass made of a group. Both arrays may be views that the next call on the same cache overwrites."""

    states: Array  # [T, W], normed: the input of the next pass and of the head
    gates: Array  # [T] exit logits; NaN without a gate


class Backend(Protocol):
    """Computes passes, embeddings and logits of one model. Safe to call from several threads."""

    config: ModelConfig
    program: LoopProgram
    kv: str  # type of the KV caches: fp32, int8, int4
    state_id: str  # equal for two backends if a saved cache of one means the same in the other
    rows_per_call: int  # rows that one group should have at most
    slots: int  # groups that one call computes with a single read of the weights

    def new_cache(self, index: int) -> Cache:
        """An empty cache number `index` of the loop program, for one sequence."""

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """Compute all groups, appending to their caches; the weights are read once for all where possible.

        Groups must have different caches. Raises Cancelled when `cancel` fires before or during the call; positions
        that a group would have added are then undefined in its cache, those before them are not touched.
        """

    def embed(self, ids: Sequence[int], start: int = 0) -> Array:
        """State rows [T, W] of token ids at positions from `start` on, the input of the first pass."""

    def head(self, rows: Array) -> Array:
        """Logits [T, V] of normed state rows [T, W]."""
