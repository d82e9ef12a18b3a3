"""Where a runtime gets graphs that compute several groups of rows in one call; `export.batched_block` builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ouro_edge.bundle.bundle import Graph


@dataclass(frozen=True, slots=True)
class BatchedGraphs:
    """Builders of the graphs for up to `slots` KV caches of a type: fp32, int8 or int4."""

    slots: int  # one of SLOT_COUNTS
    block: Callable[[str, str], Graph]  # KV type, stack -> the batched graph of the stack
    prefill: Callable[[str, Path, str], Graph]  # KV type, directory of a prefill copy, stack -> with the copy's weights
