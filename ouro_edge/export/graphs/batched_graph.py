"""The block over several KV caches in one call: dense operators over all rows, attention fanned out per cache.

GroupQueryAttention takes several new tokens over a past at batch 1 only. So the rows of all groups are concatenated,
[1, sum T, C], and only attention is split: one node per slot, each with its own past, length and KV scales. The weights
are read once for all groups, and caches never move. An `If` around the attention chooses how many slots run: a call of
one group runs the plain node. Slots that have no group get one dummy row, which only attention sees, because the kernel
refuses empty inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Fan:
    """The slots that attention is fanned out to: numbers of slots to choose from, and names of what a call gives."""

    first: int  # slot
    sizes: list[int]  # ascending; the first that holds the slots in use runs
    used: str = "slots"  # scalar: slots in use
    rows: str = "total_rows"  # [1]: their rows

    def only(self, sizes: list[int]) -> Fan:
        """The same slots, with fewer numbers to choose from."""
        return Fan(self.first, sizes, self.used, self.rows)


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

    def attention_outputs(self, layer: int, first: int = 0, prefix: str = "") -> list[str]:
        """Names of the attention and of the extended caches of the slots from `first` on."""
        present = [f"{prefix}present.{layer}.{part}.{slot}" for slot, part in self._caches(first)]
        return [f"{prefix}attention_{layer}", *present]

    def attend(self, qkv: str, layer: int) -> str:
        """Attention [1, T, H * D] over the caches of the slots that run."""
        names = self.attention_outputs(layer)
        self._nodes += self.fan_out(qkv, layer, self.all_slots(), names, "")
        return names[0]

    def all_slots(self) -> Fan:
        """All slots, in as few numbers as waste little."""
        return Fan(0, [count for count in SLOT_COUNTS if count <= self.slots])

    def branch(self, qkv: str, layer: int, fan: Fan, prefix: str) -> onnx.GraphProto:
        """Attention of these slots, as a branch whose names start with `prefix`."""
        names = self.attention_outputs(layer, fan.first, prefix)
        return self.branch_graph(f"{prefix}{layer}", self.fan_out(qkv, layer, fan, names, prefix), names)

    def branch_graph(self, name: str, nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
        """Nodes as a branch that returns attention and caches."""
        types = [onnx.TensorProto.FLOAT, *[tensor_type(CACHE_TYPES[self.kv])] * (len(outputs) - 1)]
        values = [helper.make_tensor_value_info(*pair, None) for pair in zip(outputs, types, strict=True)]
        return helper.make_graph(nodes, name, [], values)

    def fan_out(self, qkv: str, layer: int, fan: Fan, names: list[str], prefix: str) -> list[onnx.NodeProto]:
        """Nodes for attention of the slots in use; their outputs are `names`, as `attention_outputs` returns them."""
        if len(fan.sizes) == 1:
            return self._slots_attention(qkv, layer, fan, names, prefix)
        least = fan.sizes[0]
        condition = f"{prefix}few_{layer}"
        limit = self.array(f"slots_{least}", np.array(least, np.int64))
        few = self.branch(qkv, layer, fan.only(fan.sizes[:1]), f"{prefix}a{least}_")
        many = self.branch(qkv, layer, fan.only(fan.sizes[1:]), f"{prefix}b{least}_")
        return [
            helper.make_node("LessOrEqual", [fan.used, limit], [condition]),
            helper.make_node("If", [condition], names, then_branch=few, else_branch=many),
        ]

    def passed_through(self, layer: int, first: int, present: list[str]) -> list[onnx.NodeProto]:
        """Nodes that return the caches from slot `first` on as they are: bound to the same memory, so no copy."""
        return [
            helper.make_node("Identity", [f"past.{layer}.{part}.{slot}"], [name])
            for (slot, part), name in zip(self._caches(first), present, strict=True)
        ]

    def _caches(self, first: int) -> list[tuple[int, str]]:
        return [(slot, part) for slot in range(first, self.slots) for part in ("key", "value")]

    def _slots_attention(self, qkv: str, layer: int, fan: Fan, names: list[str], prefix: str) -> list[onnx.NodeProto]:
        """Attention of as many slots as the only size of `fan`."""
        present, nodes, (count,) = names[1:], list[onnx.NodeProto](), fan.sizes
        slots = range(fan.first, fan.first + count)
        if count == 1:
            nodes.append(self._slot_attention(qkv, layer, fan.first, names[0], present[:2]))
        else:
            config = self.config
            width = (config.num_heads + 2 * config.num_kv_heads) * cache_head_dim(config)
            dummies = self.array(f"dummy_rows_{count}", np.zeros((1, count, width), np.float32))
            counts, rest = f"{prefix}counts_{layer}", f"{prefix}rest_{layer}"
            parts = [f"{prefix}qkv_{layer}_{slot}" for slot in slots]
            outs = [f"{prefix}mixed_{layer}_{slot}" for slot in slots]
            picks = self.array(f"slots_{fan.first}_{count}_and_last", np.array([*slots, self.slots], np.int64))
            nodes += [
                helper.make_node("Gather", ["slot_rows", picks], [counts]),
                helper.make_node("Concat", [qkv, dummies], [f"{prefix}padded_{layer}"], axis=1),
                helper.make_node("Split", [f"{prefix}padded_{layer}", counts], [*parts, rest], axis=1),
                *(
                    self._slot_attention(parts[i], layer, slot, outs[i], present[2 * i : 2 * i + 2])
                    for i, slot in enumerate(slots)
                ),
                helper.make_node("Concat", outs, [f"{prefix}all_{layer}"], axis=1),
                helper.make_node(
                    "Slice", [f"{prefix}all_{layer}", self.constant([0]), fan.rows, self.constant([1])], [names[0]]
                ),
            ]
        return nodes + self.passed_through(layer, fan.first + count, present[2 * count :])

    def _slot_attention(self, qkv: str, layer: int, slot: int, out: str, present: list[str]) -> onnx.NodeProto:
        inputs, attributes = self.attention_inputs(qkv, layer, f".{slot}")
        outputs = [out, *present]
        return helper.make_node("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **attributes)


def batched_block_graph(config: ModelConfig, tensors: Any, kv: str, slots: int, stack: str = BLOCK) -> onnx.ModelProto:
    """The graph of one pass over groups of rows with their own caches, `slots` of them at most (1, 2, 4, 8 or 16)."""
    builder = type("SlotBuilder", (BatchedBuilder,), {"slots": slots})
    return block_graph(config, tensors, kv, builder, stack)
