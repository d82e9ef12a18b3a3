"""The prefill copy over several KV caches in one call, for the decode rows of many generations and for prompts.

Its products are faster than those of the block graph from 8 to 32 rows on, depending on the CPU. Attention is fanned
out as in the batched block graph. GroupQueryAttention over a quantised cache takes several times as long for many rows
as the attention of the prefill graph, which therefore serves a prompt: `slots` 0 means one prompt alone, -N a prompt in
slot 0 and N groups in the slots after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.bundle.bundle import SLOT_COUNTS
from ouro_edge.export.graphs.batched_graph import BatchedBuilder, Fan
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder


class BatchedPrefillBuilder(PrefillBuilder, BatchedBuilder):
    """Linear layers of the prefill copy, attention of the batched block; subclasses fix the number of slots."""

    slot = ".0"

    def prompt_rows(self) -> str:
        """The rows of the prompt [1]: all, if it is alone."""
        first = self.node("Slice", ["slot_rows", self.constant([0]), self.constant([1])])
        return self.node("Where", [self._is_alone(), super().prompt_rows(), first])

    def attend(self, qkv: str, layer: int) -> str:
        """Attention [1, T, H * D] over the caches of the slots that run, of a prompt, or of both."""
        if self.kv == "fp32":
            return BatchedBuilder.attend(self, qkv, layer)
        names = self.attention_outputs(layer)
        groups = self.branch(qkv, layer, self.all_slots(), "groups_")
        self.node(
            "If", [self.node("Greater", ["slots", self._none()])], *names,
            then_branch=groups, else_branch=self._branch_of(self._prompt, qkv, layer, "prompt_"),
        )  # fmt: skip
        return names[0]

    def _prompt(self, qkv: str, layer: int, prefix: str) -> list[str]:
        """A prompt, alone or with groups after it."""
        names = self.attention_outputs(layer, 0, prefix)
        alone = self._branch_of(self._prompt_alone, qkv, layer, "alone_")
        mixed = self._branch_of(self._prompt_and_groups, qkv, layer, "mixed_")
        self.node("If", [self._is_alone()], *names, then_branch=alone, else_branch=mixed)
        return names

    def _prompt_alone(self, qkv: str, layer: int, prefix: str) -> list[str]:
        mixed = self.attend_prompt(qkv, layer, prefix + "present")
        names = [mixed, *self.attention_outputs(layer, 0, prefix)[1:]]
        self._nodes += self.passed_through(layer, 1, names[3:])
        return names

    def _prompt_and_groups(self, qkv: str, layer: int, prefix: str) -> list[str]:
        rest = self.node("Sub", ["total_rows", self._rows])
        prompt, others = f"{prefix}prompt_{layer}", f"{prefix}others_{layer}"
        self.node("Split", [qkv, self.node("Concat", [self._rows, rest], axis=0)], prompt, others, axis=1)
        sizes = [count - 1 for count in SLOT_COUNTS if 4 <= count < self.slots]
        fan = Fan(1, [*sizes, self.slots - 1], used=self.node("Neg", ["slots"]), rows=rest)
        names = self.attention_outputs(layer, 1, prefix)
        self._nodes += self.fan_out(others, layer, fan, names, prefix)
        mixed = self.attend_prompt(prompt, layer, prefix + "present")
        present = self.attention_outputs(layer, 0, prefix)[1:]
        return [self.node("Concat", [mixed, names[0]], axis=1), *present]

    def _is_alone(self) -> str:
        return self.node("Equal", ["slots", self._none()])

    def _none(self) -> str:
        return self.array("no_slots", np.array(0, np.int64))

    def _branch_of(
        self, add: Callable[[str, int, str], list[str]], qkv: str, layer: int, prefix: str
    ) -> onnx.GraphProto:
        """The nodes that `add` adds, as a branch that returns the outputs it names."""
        outer, self._nodes = self._nodes, []
        outputs = add(qkv, layer, prefix)
        nodes, self._nodes = self._nodes, outer
        return self.branch_graph(f"{prefix}{layer}", nodes, outputs)


def batched_prefill_graph(
    config: ModelConfig, tensors: Any, kv: str, slots: int, stack: str = BLOCK
) -> onnx.ModelProto:
    """The graph of one pass over groups of rows with their own caches, `slots` of them at most (1, 2, 4, 8 or 16)."""
    builder = type("SlotBuilder", (BatchedPrefillBuilder,), {"slots": slots})
    return block_graph(config, tensors, kv, builder, stack)
