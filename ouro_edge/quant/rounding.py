"""Calibrated rounding: codes and scales of a matrix that minimise the error of its outputs on given inputs.

The error of rounding W [N, K] to V on inputs X is trace((W - V) H (W - V)^T) with H = X^T X, the Hessian. Three steps:

1. Scales of every block by least squares, weighted by diag(H), over a few trial grids.
2. Codes column by column, columns of large inputs first; the error of a column is compensated by the columns that are
   not yet rounded (GPTQ, arXiv 2210.17323, with the blocks of the original order).
3. Sweeps of coordinate descent on the same objective: scale (and minimum) of a block exactly, then each of its codes.
   No step increases the error, except that scales are rounded to float16.

All arrays are transposed, [K, N] and [blocks, N], so that a column of W is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.quant.grid import Grid, Rounded
from ouro_edge.quant.objective import Objective
from ouro_edge.system.cpus import available_threads

_ROWS = 1024  # rows of W per thread and step
_COLUMNS = 32  # columns that are rounded between two small matrix products
_PANEL = 128  # columns between two products with all columns that follow
_TINY = np.float32(2.0**-14)  # smallest scale: the smallest normal float16
_MAX_SKEW = 0.2  # the ends of a trial range differ by no more
_MIN_SPREAD = 1e-6  # of the sum of squares: below it the levels of a block are all the same
_SHRINK = (1.1, 1.04, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68)  # trial ranges, relative to the block's


def round_matrix(
    weights: Array, objective: Objective, grid: Grid, *, sweeps: int = 2, feedback: bool = True,
    threads: int | None = None,
) -> Rounded:  # fmt: skip
    """Codes, scales and zero points (or minima) of `weights` [N, K].

    Scales, and minima if there are any, are float16 values. Memory: about twelve times a thread's 1024 rows.
    """
    rows, width = weights.shape
    blocks = -(-width // grid.block_size)
    out = Rounded(np.empty((rows, width), np.uint8), *(np.empty((rows, blocks), np.float32) for _ in range(2)))

    def work(start: int) -> None:
        part = slice(start, min(rows, start + _ROWS))
        state = _State(np.ascontiguousarray(weights[part].T), objective, grid)
        if feedback:
            state.feed_back()
        for _ in range(sweeps):
            state.sweep()
        out.codes[part] = state.codes().T
        out.scales[part], out.zeros[part] = state.scales.T, state.zeros().T

    starts = range(0, rows, _ROWS)
    workers = min(available_threads() if threads is None else threads, len(starts))
    if workers <= 1:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(workers, "round") as pool:
            list(pool.map(work, starts))
    return out


class _State:
    """Levels, scales and minima of some rows of a matrix, transposed."""

    def __init__(self, target: Array, objective: Objective, grid: Grid) -> None:
        self.target, self.objective, self.grid = target, objective, grid
        width, rows = target.shape
        self.spans = [(k, min(width, k + grid.block_size)) for k in range(0, width, grid.block_size)]
        shape = (len(self.spans), rows)
        self.scales, self.minima = np.empty(shape, np.float32), np.zeros(shape, np.float32)
        self.low = np.zeros(shape, np.float32)  # the lowest level; levels are codes + low
        self.levels = np.empty_like(target)
        for b, (first, last) in enumerate(self.spans):
            self._search(b, target[first:last], objective.importance[first:last, None])

    def codes(self) -> NDArray[np.uint8]:
        out = np.empty(self.levels.shape, np.uint8)
        for b, (first, last) in enumerate(self.spans):
            out[first:last] = self.levels[first:last] - self.low[b]
        return out

    def zeros(self) -> Array:
        return self.minima if self.grid.zero == "float" else -self.low

    def _starts(self, least: Array, most: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Scale, minimum and lowest level [N] of each trial grid, from a block's extreme values [N]."""
        top = self.grid.top
        if self.grid.zero == "middle":
            extreme = np.where(most > -least, most, least)
            for a in _SHRINK:
                scale = _safe(extreme * np.float32(-2 * a / (top + 1)))
                yield scale, np.zeros_like(scale), np.full_like(scale, -(top + 1) // 2)
            return
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        for a in _SHRINK[::2]:
            for c in _SHRINK[::2]:
                if abs(a - c) > _MAX_SKEW:
                    continue
                bottom = least * np.float32(a)
                scale = _safe((most * np.float32(c) - bottom) / np.float32(top))
                if self.grid.zero == "float":
                    yield scale, bottom, np.zeros_like(scale)
                else:
                    yield scale, np.zeros_like(scale), -np.clip(np.rint(-bottom / scale), 0, top)

    def _search(self, b: int, values: Array, weight: Array) -> None:
        """Set scale, minimum, lowest level and levels of block b by least squares, weighted by `weight` [k, 1]."""
        top, total, free = self.grid.top, weight.sum(), self.grid.zero == "float"
        best = np.full(values.shape[1], np.inf, np.float32)
        mean_v = (values * weight).sum(0) / total
        for scale, minimum, low in self._starts(values.min(0), values.max(0)):
            for _ in range(2 if free else 1):
                levels = np.clip(np.rint((values - minimum) / scale), low, low + top)
                weighted = levels * weight
                square = np.einsum("kn,kn->n", weighted, levels)
                product = np.einsum("kn,kn->n", weighted, values)
                if free:
                    mean_l = weighted.sum(0) / total
                    spread = square - total * mean_l * mean_l
                    slope = (product - total * mean_l * mean_v) / np.maximum(spread, 1e-30)
                    scale = _half(np.where(spread > _MIN_SPREAD * square, slope, scale))
                    minimum = _half_any(mean_v - scale * mean_l)
                else:
                    scale = _half(np.where(square > 0, product / np.maximum(square, 1e-30), scale))
                rest = values - scale * levels - minimum
                error = np.einsum("kn,kn->n", rest * weight, rest)
                better = error < best
                for kept, new in (
                    (best, error),
                    (self.scales[b], scale),
                    (self.low[b], low),
                    (self.minima[b], minimum),
                ):
                    np.copyto(kept, new, where=better)
        first, last = self.spans[b]
        levels = np.rint((values - self.minima[b]) / self.scales[b])
        np.clip(levels, self.low[b], self.low[b] + top, out=self.levels[first:last])

    def feed_back(self) -> None:
        """Round column by column; the columns that follow compensate for the error."""
        order, factor, size = self.objective.order, self.objective.factor, self.grid.block_size
        values, width, top = self.target[order], len(order), self.grid.top
        for first in range(0, width, _PANEL):
            last = min(width, first + _PANEL)
            errors = np.empty((last - first, values.shape[1]), np.float32)
            for start, stop in _pieces(first, last):
                for j in range(start, stop):
                    b, value = order[j] // size, values[j]
                    scale, low = self.scales[b], self.low[b]
                    level = np.clip(np.rint((value - self.minima[b]) / scale), low, low + top)
                    self.levels[order[j]] = level
                    error = (value - self.minima[b] - scale * level) / factor[j, j]
                    errors[j - first] = error
                    values[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
                values[stop:last] -= factor[start:stop, stop:last].T @ errors[start - first : stop - first]
            values[last:] -= factor[first:last, last:].T @ errors

    def sweep(self) -> None:
        """One pass of coordinate descent over all blocks."""
        hessian, top = self.objective.hessian, self.grid.top
        rest = self.target.copy()
        for b, (first, last) in enumerate(self.spans):
            rest[first:last] -= self.levels[first:last] * self.scales[b] + self.minima[b]
        slope = hessian @ rest  # [K, N]: how fast the error falls when a value grows
        for blocks in _panels(self.spans):
            start, stop = blocks[0][1][0], blocks[-1][1][1]
            moved = np.zeros((stop - start, slope.shape[1]), np.float32)
            for b, (first, last) in blocks:
                change = self._refit(b, slope[first:last], hessian[first:last, first:last])
                slope[first:stop] -= hessian[first:stop, first:last] @ change
                moved[first - start : last - start] = change
                scale, low = self.scales[b], self.low[b]
                for k0, k1 in _pieces(first, last):
                    pull, moves = slope[k0:k1], np.empty((k1 - k0, slope.shape[1]), np.float32)
                    for j in range(k0, k1):
                        old = self.levels[j]
                        level = np.rint(old + pull[j - k0] / (hessian[j, j] * scale))
                        np.clip(level, low, low + top, out=level)
                        move = scale * (level - old)
                        moves[j - k0] = move
                        pull[j - k0 + 1 :] -= hessian[j + 1 : k1, j, None] * move
                        self.levels[j] = level
                    slope[k1:stop] -= hessian[k1:stop, k0:k1] @ moves
                    moved[k0 - start : k1 - start] += moves
            slope[stop:] -= hessian[stop:, start:stop] @ moved  # those before are not read again in this sweep

    def _refit(self, b: int, slope: Array, own: Array) -> Array:
        """The best scale and minimum of block b for its codes; returns the change of its values."""
        first, last = self.spans[b]
        levels = self.levels[first:last]
        curved = own @ levels
        square = np.einsum("kn,kn->n", levels, curved)
        product = np.einsum("kn,kn->n", levels, slope)
        scale, minimum = self.scales[b], self.minima[b]
        if self.grid.zero == "float":
            mixed, flat, pull = curved.sum(0), own.sum(), slope.sum(0)
            det = square * flat - mixed * mixed
            good = det > 1e-4 * square * flat
            det = np.where(good, det, 1)
            step = np.where(good, (product * flat - mixed * pull) / det, 0)
            new = _half(scale + step)
            lift = (pull - mixed * (new - scale)) / flat
            bottom = _half_any(minimum + lift)
        else:
            new = _half(scale + np.where(square > 0, product / np.where(square > 0, square, 1), 0))
            bottom = minimum
        change: Array = (new - scale) * levels + (bottom - minimum)
        self.scales[b], self.minima[b] = new, bottom
        return change


def _panels(spans: list[tuple[int, int]]) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """Consecutive blocks, with their numbers, that have about `_PANEL` columns together."""
    size = spans[0][1] - spans[0][0]
    count = max(1, _PANEL // size)
    numbered = list(enumerate(spans))
    for start in range(0, len(numbered), count):
        yield numbered[start : start + count]


def _pieces(first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, _COLUMNS):
        yield start, min(last, start + _COLUMNS)


def _half_any(values: NDArray[np.floating]) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _half(scales: NDArray[np.floating]) -> Array:
    """Rounded to float16, away from zero."""
    return _safe(_half_any(scales))


def _safe(scales: NDArray[np.floating]) -> Array:
    """Scales with a magnitude of at least the smallest normal float16."""
    safe: Array = np.where(np.abs(scales) < _TINY, np.where(scales < 0, -_TINY, _TINY), scales).astype(np.float32)
    return safe
