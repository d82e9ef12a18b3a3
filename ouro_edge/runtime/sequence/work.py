"""What a loop computed, and what a sequence has cost."""

from __future__ import annotations

from dataclasses import dataclass

from ouro_edge.arch.weights import Array


@dataclass(frozen=True, slots=True)
class LoopChunk:
    """What one loop computed for consecutive positions; the arrays belong to the caller."""

    start: int  # position of the first row
    states: Array  # [T, W], normed
    gates: Array  # [T] exit logits; NaN without a gate


@dataclass(slots=True)
class Work:
    """What a sequence has cost so far."""

    calls: int = 0  # block calls: each reads all weights of the block once
    rows: int = 0  # positions processed, summed over loops
