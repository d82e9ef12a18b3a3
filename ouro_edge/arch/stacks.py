"""The parts of a loop program: stacks of layers, passes over them, and the state rows that go from pass to pass.

A state row [W] has one part of C columns, the hidden state, or two. What a pass does besides its layers (adding two
parts, norms) is a property of its stack and is computed by the stack's graph: the runtime only moves rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BLOCK = "block"  # name of the only stack of a model that loops over all its layers

Array = NDArray[np.float32]
Reads = Literal["row", "first", "second", "sum", "adapter"]
Writes = Literal["row", "first", "second", "both"]


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that one graph computes, and what it does before and after them.

    `reads` is the input of the first layer: the whole row, one of its parts, the sum of both, or the product of the
    model's adapter with the second and the first part. The output of the last layer goes through the closing norm and
    replaces what `writes` names; "both" keeps the output itself in the first part and the normed one in the second.
    """

    name: str  # of the graph, and part of its file's name
    layers: range  # of the model's layers
    reads: Reads = "row"
    writes: Writes = "row"
    opening_norm: bool = False  # whether the final norm also precedes the first layer
    closing_norm: bool = True


@dataclass(frozen=True, slots=True)
class LoopPass:
    """One pass of a token through a graph."""

    graph: str  # name of a stack
    cache: int  # index of the KV cache that the pass appends to
    may_exit: bool = True  # whether a token may stop after this pass


@dataclass(frozen=True, slots=True)
class LoopProgram:
    """The passes of a model in order. Passes that use the same cache must use the same graph; the last one may exit."""

    passes: tuple[LoopPass, ...]
    width: int  # W: columns of a state row
    stacks: tuple[Stack, ...]
    embedding_scale: float = 1.0  # factor of the embedding in the first part of the first row
    second: str | None = None  # tensor [C] that is the second part of the first row; zeros without one
    output_at: int = 0  # first column of the part that the head reads
    first_loop: int = 0  # passes before the first loop, which every position takes
    coda: LoopPass | None = None  # a pass that a position takes once, after its exit
    usual_loops: int | None = None  # loops that a token usually runs at most; None for all
    noise: tuple[float, int] | None = None  # standard deviation and seed of the second part of the first row

    @property
    def num_caches(self) -> int:
        """Number of KV caches that a sequence needs."""
        return 1 + max(step.cache for step in self._steps)

    @property
    def _steps(self) -> tuple[LoopPass, ...]:
        return self.passes if self.coda is None else (*self.passes, self.coda)

    @property
    def shares_caches(self) -> bool:
        """Whether several passes append to the same cache."""
        return self.num_caches < len(self.passes)

    @property
    def cached_layers(self) -> int:
        """Number of layers with keys and values of their own, summed over the caches that are usually filled."""
        return sum(len(self.stack_of(cache).layers) for cache in self.usual_caches)

    @property
    def usual_steps(self) -> tuple[LoopPass, ...]:
        """The passes of a token that runs as many loops as usual at most, the coda included."""
        return self._steps if self.usual_loops is None else self.steps_to(self.usual_loops)

    def steps_to(self, depth: int) -> tuple[LoopPass, ...]:
        """The passes of a token that exits at this depth, the coda included."""
        return (*self.passes[: self.step_of(depth)], *self._steps[len(self.passes) :])

    @property
    def usual_caches(self) -> list[int]:
        """The caches of the usual passes."""
        return sorted({step.cache for step in self.usual_steps})

    def measured_as(self, cache: int) -> int:
        """The cache whose ranges of keys and values hold for this one: loops beyond the usual ones resemble the last.

        A number within `usual_caches`.
        """
        usual = self.usual_caches
        if cache in usual:
            return usual.index(cache)
        assert self.usual_loops is not None
        return usual.index(self.passes[self.first_loop + self.usual_loops - 1].cache)

    @property
    def most_layers(self) -> int:
        """Layers of the largest stack."""
        return max(len(stack.layers) for stack in self.stacks)

    def stack(self, graph: str) -> Stack:
        """The stack of a graph."""
        return {stack.name: stack for stack in self.stacks}[graph]

    def cache_of(self, graph: str) -> int:
        """The first cache that a graph appends to."""
        return next(step.cache for step in self._steps if step.graph == graph)

    def stack_of(self, cache: int) -> Stack:
        """The stack that appends to a cache."""
        return self.stack(next(step.graph for step in self._steps if step.cache == cache))

    def step_of(self, depth: int) -> int:
        """The pass of a loop, both counted from 1."""
        return self.first_loop + depth

    def exit_at(self, limit: int) -> int:
        """The depth at which a rule with this limit stops: the first loop from there on that a token may exit from."""
        loops = self.passes[self.first_loop :]
        return next(depth for depth, step in enumerate(loops, start=1) if depth >= limit and step.may_exit)

    def may_exit(self, depth: int) -> bool:
        """Whether a token may exit after this loop, counted from 1."""
        return self.passes[self.step_of(depth) - 1].may_exit

    def first_rows(self, embedded: Array, second: Array | None = None, start: int = 0) -> Array:
        """State rows [T, W] of embedding rows [T, C] at positions from `start` on: the input of the first pass.

        `second` has the values [C] of the second part. Noise is that of a position, whatever rows are made with it: a
        normal distribution that is cut at three standard deviations, as in the code of Huginn.
        """
        width = embedded.shape[-1]
        if width == self.width and self.embedding_scale == 1:
            return embedded
        rows = np.zeros((len(embedded), self.width), np.float32)
        np.multiply(embedded, np.float32(self.embedding_scale), out=rows[:, :width])
        if second is not None:
            rows[:, width:] = second
        if self.noise is not None:
            deviation, seed = self.noise
            for position, row in enumerate(rows, start):
                row[width:] = deviation * _cut_normal(np.random.default_rng([seed, position]), self.width - width)
        return rows

    def state_columns(self, width: int) -> slice:
        """The columns of a row that are the state; `width` is C."""
        return slice(self.output_at, self.output_at + width)

    def output(self, rows: Array, width: int) -> Array:
        """The part [..., C] of state rows [..., W] that the head reads; C is `width`."""
        return rows if width == self.width else rows[..., self.state_columns(width)]


def _cut_normal(rng: np.random.Generator, count: int) -> Array:
    """Normal values [count] without those beyond 3."""
    values = rng.standard_normal(count, np.float32)
    while (far := np.abs(values) > 3).any():
        values[far] = rng.standard_normal(int(far.sum()), np.float32)
    return values
