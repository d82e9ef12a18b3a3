"""A model as the runtime sees it: an ordered list of passes over graphs that share or own their KV caches.

Ouro is R passes over one graph, each with a cache of its own, and a token may exit after every pass. What a pass
computes (norms between loops, adapters, added states) is inside its graph: the runtime only moves state rows [T, W]
from one pass to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from ouro_edge.arch.config import ModelConfig

BLOCK = "block"  # name of Ouro's only graph


@dataclass(frozen=True, slots=True)
class LoopPass:
    """One pass of a token through a graph."""

    graph: str
    cache: int  # index of the KV cache that the pass appends to
    may_exit: bool = True  # whether a token may stop after this pass


@dataclass(frozen=True, slots=True)
class LoopProgram:
    """The passes of a model in order. Passes that use the same cache must use the same graph; the last one may exit."""

    passes: tuple[LoopPass, ...]
    width: int  # W: columns of a state row

    @property
    def num_caches(self) -> int:
        """Number of KV caches that a sequence needs."""
        return 1 + max(step.cache for step in self.passes)

    @property
    def shares_caches(self) -> bool:
        """Whether several passes append to the same cache."""
        return self.num_caches < len(self.passes)

    def exit_at(self, limit: int) -> int:
        """The depth at which a rule with this limit stops: the first pass from there on that a token may exit from."""
        return next(depth for depth, step in enumerate(self.passes, start=1) if depth >= limit and step.may_exit)

    def may_exit(self, depth: int) -> bool:
        """Whether a token may exit after this pass, counted from 1."""
        return self.passes[depth - 1].may_exit


def loop_program(config: ModelConfig, *, share_kv: bool = False) -> LoopProgram:
    """Ouro's program: R passes over the block; with `share_kv` all of them append to one cache."""
    passes = tuple(LoopPass(BLOCK, 0 if share_kv else loop) for loop in range(config.loops))
    return LoopProgram(passes, config.hidden_size)
