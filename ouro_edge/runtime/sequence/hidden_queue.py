"""A queue of hidden rows: appended at the back, taken from the front, clipped at the back."""

from __future__ import annotations

import numpy as np

from ouro_edge.arch.weights import Array


class HiddenQueue:
    """Rows [n, C] that wait for a loop; appending is O(1) amortised, and memory follows use."""

    def __init__(self, width: int) -> None:
        self._buffer = np.empty((0, width), np.float32)
        self._start = self._stop = 0

    def __len__(self) -> int:
        return self._stop - self._start

    def append(self, rows: Array) -> None:
        """Add rows [k, C] at the back."""
        count = len(self)
        if self._stop + len(rows) > len(self._buffer):
            waiting = self._buffer[self._start : self._stop]
            if count + len(rows) > len(self._buffer) // 2:
                grown = np.empty((2 * (count + len(rows)), waiting.shape[1]), np.float32)
                grown[:count] = waiting
                self._buffer = grown
            else:
                self._buffer[:count] = waiting
            self._start, self._stop = 0, count
        self._buffer[self._stop : self._stop + len(rows)] = rows
        self._stop += len(rows)

    def peek(self, count: int) -> Array:
        """The first `count` rows [count, C], a view that lives until the next append."""
        return self._buffer[self._start : min(self._stop, self._start + count)]

    def drop(self, count: int) -> None:
        """Drop the first `count` rows."""
        self._start += count
        if self._start >= self._stop:
            self._start = self._stop = 0
            if len(self._buffer) > 64:  # a prompt has passed: release its memory
                self._buffer = self._buffer[:0].copy()

    def clip(self, count: int) -> None:
        """Keep only the first `count` rows."""
        self._stop = min(self._stop, self._start + max(0, count))
