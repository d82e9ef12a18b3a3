"""The prefill copy over several KV caches in one call, for the decode rows of many generations and for prompts.

Its products are faster than those of the block graph from 8 to 32 rows on, depending on the CPU. Attention is fanned
out as in the batched block graph; over a quantised cache, `slots` 0 means one prompt, with attention for many rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.bundle.bundle import SLOT_COUNTS
from ouro_edge.export.graphs.batched_graph import BatchedBuilder
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder


class BatchedPrefillBuilder(PrefillBuilder, BatchedBuilder):
    """Linear layers of the prefill copy, attention of the batched block; subclasses fix the number of slots."""

    slot = ".0"

    def attend(self, qkv: str, layer: int) -> str:
        """Attention [1, T, H * D] over the caches of the slots that run, or of one prompt."""
        if self.kv == "fp32":
            return BatchedBuilder.attend(self, qkv, layer)
        names = self.attention_outputs(layer)
        sizes = [count for count in SLOT_COUNTS if count <= self.slots]
        none = self.array("no_slots", np.array(0, np.int64))
        prompt, groups = self._prompt_graph(qkv, layer), self.branch(qkv, layer, sizes, "groups_")
        condition = self.node("Equal", ["slots", none])
        self.node("If", [condition], *names, then_branch=prompt, else_branch=groups)
        return names[0]

    def _prompt_graph(self, qkv: str, layer: int) -> onnx.GraphProto:
        outer, self._nodes = self._nodes, []
        mixed = self.attend_prompt(qkv, layer, "prompt_present")
        nodes, self._nodes = self._nodes, outer
        names = [mixed, *(f"prompt_{name}" for name in self.attention_outputs(layer)[1:])]
        nodes += self.passed_through(layer, 1, names[1:])
        return self.branch_graph(f"prompt_{layer}", nodes, names)


def batched_prefill_graph(
    config: ModelConfig, tensors: Any, kv: str, slots: int, stack: str = BLOCK
) -> onnx.ModelProto:
    """The graph of one pass over groups of rows with their own caches, `slots` of them at most (1, 2, 4, 8 or 16)."""
    builder = type("SlotBuilder", (BatchedPrefillBuilder,), {"slots": slots})
    return block_graph(config, tensors, kv, builder, stack)
