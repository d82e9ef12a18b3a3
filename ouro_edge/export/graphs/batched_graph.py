"""The block over several KV caches in one call: dense operators over all rows, attention fanned out per cache.

GroupQueryAttention takes several new tokens over a past at batch 1 only. So the rows of all groups are concatenated,
[1, sum T, C], and only attention is split: one node per slot, each with its own past, length and KV scales. The weights
are read once for all groups, and caches never move. An `If` around the attention chooses how many slots run: a call of
one group runs the plain node. Slots that have no group get one dummy row, which only attention sees, because the kernel
refuses empty inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.bundle.bundle import SLOT_COUNTS, cache_head_dim
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.builder import CACHE_TYPES, MICROSOFT, GraphBuilder
from ouro_edge.export.graphs.values import tensor_type


class BatchedBuilder(GraphBuilder):
    """A graph builder whose attention serves up to `slots` caches; subclasses fix the number."""

    slots = 1

    def cache_inputs(self, layer: int, part: str) -> None:
        """Inputs and outputs of one layer's keys or values, for every slot."""
        config, kind = self.config, CACHE_TYPES[self.kv]
        width = cache_head_dim(config) // (2 if self.kv == "int4" else 1)
        for slot in range(self.slots):
            shape = ["batch", config.num_kv_heads, f"capacity_{slot}", width]
            self.inputs(f"past.{layer}.{part}.{slot}", kind, shape)
            self.outputs(f"present.{layer}.{part}.{slot}", kind, shape)
            if self.kv != "fp32":
                self.inputs(f"scale.{layer}.{part}.{slot}", "float32", [config.num_kv_heads * cache_head_dim(config)])

    def length_inputs(self) -> None:
        """Lengths of every slot, how many rows it has, and how many slots run."""
        for slot in range(self.slots):
            self.inputs(f"seqlens_k.{slot}", "int32", ["batch"])
            self.inputs(f"total_length.{slot}", "int32", [])
        self.inputs("slot_rows", "int64", [self.slots + 1])  # rows of each slot, then the dummy rows that are left
        self.inputs("total_rows", "int64", [1])
        self.inputs("slots", "int64", [])

    def attention_outputs(self, layer: int) -> list[str]:
        """Names of the attention and of the extended caches of all slots."""
        present = [f"present.{layer}.{part}.{slot}" for slot in range(self.slots) for part in ("key", "value")]
        return [f"attention_{layer}", *present]

    def attend(self, qkv: str, layer: int) -> str:
        """Attention [1, T, H * D] over the caches of the slots that run."""
        names = self.attention_outputs(layer)
        sizes = [count for count in SLOT_COUNTS if count <= self.slots]
        self._nodes += self._branch_nodes(qkv, layer, sizes, names, "")
        return names[0]

    def branch(self, qkv: str, layer: int, sizes: list[int], prefix: str) -> onnx.GraphProto:
        """Attention of as many slots as one of the sizes, as a branch whose names start with `prefix`."""
        names = [prefix + name for name in self.attention_outputs(layer)]
        return self.branch_graph(f"{prefix}{layer}", self._branch_nodes(qkv, layer, sizes, names, prefix), names)

    def branch_graph(self, name: str, nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
        """Nodes as a branch that returns attention and all caches."""
        types = [onnx.TensorProto.FLOAT, *[tensor_type(CACHE_TYPES[self.kv])] * (len(outputs) - 1)]
        values = [helper.make_tensor_value_info(*pair, None) for pair in zip(outputs, types, strict=True)]
        return helper.make_graph(nodes, name, [], values)

    def _branch_nodes(
        self, qkv: str, layer: int, sizes: list[int], names: list[str], prefix: str
    ) -> list[onnx.NodeProto]:
        """Nodes that run the smallest of the sizes that holds all slots in use."""
        if len(sizes) == 1:
            return self._fan_out(qkv, layer, sizes[0], names, prefix)
        condition = f"{prefix}few_{layer}"
        limit = self.array(f"slots_{sizes[0]}", np.array(sizes[0], np.int64))
        few = self.branch(qkv, layer, sizes[:1], f"{prefix}a{sizes[0]}_")
        many = self.branch(qkv, layer, sizes[1:], f"{prefix}b{sizes[0]}_")
        return [
            helper.make_node("LessOrEqual", ["slots", limit], [condition]),
            helper.make_node("If", [condition], names, then_branch=few, else_branch=many),
        ]

    def passed_through(self, layer: int, first: int, present: list[str]) -> list[onnx.NodeProto]:
        """Nodes that return the caches from slot `first` on as they are: bound to the same memory, so no copy."""
        rest = [(slot, part) for slot in range(first, self.slots) for part in ("key", "value")]
        return [
            helper.make_node("Identity", [f"past.{layer}.{part}.{slot}"], [name])
            for (slot, part), name in zip(rest, present[2 * first :], strict=True)
        ]

    def _fan_out(self, qkv: str, layer: int, count: int, names: list[str], prefix: str) -> list[onnx.NodeProto]:
        """Attention of `count` slots."""
        present, nodes = names[1:], list[onnx.NodeProto]()
        if count == 1:
            nodes.append(self._slot_attention(qkv, layer, 0, names[0], present[:2]))
        else:
            config = self.config
            width = (config.num_heads + 2 * config.num_kv_heads) * cache_head_dim(config)
            dummies = self.array(f"dummy_rows_{count}", np.zeros((1, count, width), np.float32))
            counts, rest = f"{prefix}counts_{layer}", f"{prefix}rest_{layer}"
            parts = [f"{prefix}qkv_{layer}_{slot}" for slot in range(count)]
            outs = [f"{prefix}mixed_{layer}_{slot}" for slot in range(count)]
            picks = self.array(f"first_{count}_and_last", np.array([*range(count), self.slots], np.int64))
            nodes += [
                helper.make_node("Gather", ["slot_rows", picks], [counts]),
                helper.make_node("Concat", [qkv, dummies], [f"{prefix}padded_{layer}"], axis=1),
                helper.make_node("Split", [f"{prefix}padded_{layer}", counts], [*parts, rest], axis=1),
                *(
                    self._slot_attention(parts[slot], layer, slot, outs[slot], present[2 * slot : 2 * slot + 2])
                    for slot in range(count)
                ),
                helper.make_node("Concat", outs, [f"{prefix}all_{layer}"], axis=1),
                helper.make_node(
                    "Slice",
                    [f"{prefix}all_{layer}", self.constant([0]), "total_rows", self.constant([1])],
                    [names[0]],
                ),
            ]
        return nodes + self.passed_through(layer, count, present)

    def _slot_attention(self, qkv: str, layer: int, slot: int, out: str, present: list[str]) -> onnx.NodeProto:
        inputs, attributes = self.attention_inputs(qkv, layer, f".{slot}")
        outputs = [out, *present]
        return helper.make_node("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **attributes)


def batched_block_graph(config: ModelConfig, tensors: Any, kv: str, slots: int, stack: str = BLOCK) -> onnx.ModelProto:
    """The graph of one pass over groups of rows with their own caches, `slots` of them at most (1, 2, 4, 8 or 16)."""
    builder = type("SlotBuilder", (BatchedBuilder,), {"slots": slots})
    return block_graph(config, tensors, kv, builder, stack)
