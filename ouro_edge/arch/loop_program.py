"""A model as the runtime sees it: an ordered list of passes over graphs that share or own their KV caches.

Ouro is R passes over one graph, each with a cache of its own, and a token may exit after every pass. A family with
another order of passes has a program of its own.
"""

from __future__ import annotations

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.stacks import BLOCK, LoopPass, LoopProgram, Stack
from ouro_edge.errors import RequestError

__all__ = ["BLOCK", "LoopPass", "LoopProgram", "Stack", "loop_program"]


def loop_program(config: ModelConfig, *, share_kv: bool = False) -> LoopProgram:
    """The program of a model; with `share_kv` all passes append to one cache, RequestError if their layers differ."""
    if (make := config.family.program) is not None:
        if share_kv:
            raise RequestError("the passes of this model have different layers, so they cannot share one KV cache: "
                               "leave --kv-share out")  # fmt: skip
        return make(config)
    passes = tuple(LoopPass(BLOCK, 0 if share_kv else loop) for loop in range(config.loops))
    if config.loop_norm:
        return LoopProgram(passes, config.hidden_size, (Stack(BLOCK, range(config.num_layers)),))
    # A state row has the output of the block, where the next loop starts, and then the normed one for the head.
    stack = Stack(BLOCK, range(config.num_layers), "first", "both")
    return LoopProgram(passes, 2 * config.hidden_size, (stack,), output_at=config.hidden_size)
