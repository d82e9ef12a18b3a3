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
Reads = Literal["row", "first", "sum"]
Writes = Literal["row", "first", "second", "both"]


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that one graph computes, and what it does before and after them.

    `reads` is the input of the first layer: the whole row, its first part, or the sum of both parts. The output of the
    last layer goes through the closing norm and replaces what `writes` names; "both" keeps the output itself in the
    first part and the normed one in the second.
    """

    name: str  # of the graph, and part of its file's name
    layers: range  # of the model's layers
    reads: Reads = "row"
    writes: Writes = "row"


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

    @property
    def num_caches(self) -> int:
        """Number of KV caches that a sequence needs."""
        return 1 + max(step.cache for step in self.passes)

    @property
    def shares_caches(self) -> bool:
        """Whether several passes append to the same cache."""
        return self.num_caches < len(self.passes)

    @property
    def cached_layers(self) -> int:
        """Number of layers with keys and values of their own, summed over all caches."""
        return sum(len(self.stack_of(cache).layers) for cache in range(self.num_caches))

    @property
    def most_layers(self) -> int:
        """Layers of the largest stack."""
        return max(len(stack.layers) for stack in self.stacks)

    def stack(self, graph: str) -> Stack:
        """The stack of a graph."""
        return {stack.name: stack for stack in self.stacks}[graph]

    def stack_of(self, cache: int) -> Stack:
        """The stack that appends to a cache."""
        return self.stack(next(step.graph for step in self.passes if step.cache == cache))

    def exit_at(self, limit: int) -> int:
        """The depth at which a rule with this limit stops: the first pass from there on that a token may exit from."""
        return next(depth for depth, step in enumerate(self.passes, start=1) if depth >= limit and step.may_exit)

    def may_exit(self, depth: int) -> bool:
        """Whether a token may exit after this pass, counted from 1."""
        return self.passes[depth - 1].may_exit

    def first_rows(self, embedded: Array, second: Array | None = None) -> Array:
        """State rows [T, W] of embedding rows [T, C]: the input of the first pass. `second` has the values [C]."""
        width = embedded.shape[-1]
        if width == self.width and self.embedding_scale == 1:
            return embedded
        rows = np.zeros((len(embedded), self.width), np.float32)
        np.multiply(embedded, np.float32(self.embedding_scale), out=rows[:, :width])
        if second is not None:
            rows[:, width:] = second
        return rows

    def output(self, rows: Array, width: int) -> Array:
        """The part [..., C] of state rows [..., W] that the head reads; C is `width`."""
        return rows if width == self.width else rows[..., self.output_at : self.output_at + width]
