"""The graph of the prefill copy: int8 matrix products over whole rows, and attention for many rows.

Inputs and outputs are those of the block graph, so that the runtime can use both graphs with the same cache. Over a
float32 cache, attention is that of the block graph. Over a quantised cache, GroupQueryAttention takes two to four times
as long for 256 rows as MultiHeadAttention over a float32 copy of the cache, which is used instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.export.graphs.builder import IR_VERSION, MICROSOFT, OPSETS, GraphBuilder
from ouro_edge.quant.rotation import rotation, rotation_size


class PrefillBuilder(GraphBuilder):
    """Linear layers by MatMulIntegerToFloat, and MultiHeadAttention over a quantised cache; for batch size 1."""

    slot = ""  # ends the names of what belongs to the cache of a prompt

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.kv != "fp32":
            self._positions()

    def _positions(self) -> None:
        """Nodes for positions and the causal mask, which all layers share."""
        one, column = self.array("one", np.array(1)), self.constant([1, 1, -1, 1])
        total = self.node("Cast", ["total_length" + self.slot], to=TensorProto.INT64)
        self._rows = self.prompt_rows()
        start = self.node("Sub", [total, self.node("Squeeze", [self._rows])])
        self._start, self._end = (self.node("Reshape", [at, self.constant([-1])]) for at in (start, total))
        positions = self.node("Reshape", [self.node("Range", [start, total, one]), column])
        # Positions of new rows in a cache [1, KV, capacity, D]: indices [1, KV, T, 3] of batch, head and position.
        heads = np.zeros((1, self.config.num_kv_heads, 1, 3), np.int64)
        heads[0, :, 0, 1] = np.arange(self.config.num_kv_heads)
        self._slots = self.node(
            "Add", [self.array("heads", heads), self.node("Mul", [positions, self.constant([0, 0, 1])])]
        )
        seen = self.node("LessOrEqual", [self.node("Range", [self.array("zero", np.array(0)), total, one]), positions])
        self._causal = self.node("Where", [seen, self.number(0.0), self.number(-1e30)])

    def prompt_rows(self) -> str:
        """The rows of the prompt [1]."""
        return self.node("Shape", ["hidden"], start=1, end=2)

    def linear(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T in integers: x [1, T, K] as uint8 with a scale per row, weights as int8 with one per column."""
        tensor = self.tensors.get(weight)
        if tensor is None or "columns" not in tensor.parts:
            return super().linear(x, weight, *outputs)
        rounded, scale = self.rounded(x, tensor.shape[1])
        return self.node("Mul", [self.product(rounded, weight), scale], *outputs)

    def add_norm(self, residual: str, x: str, weight: str) -> tuple[str, str]:
        """As in the block graph, but in two operators, which are faster than the fused one for many rows."""
        total = self.node("Add", [residual, x])
        return self.norm(total, weight), total

    def feed_forward(self, x: str, layer: str) -> str:
        """As in the block graph, with gate and up in separate products, which saves a copy of both.

        The scale of a row is not applied to `up` but to the result: rounding the product to rows gives the same codes.
        """
        gate, up, down = (f"{layer}{part}_proj" for part in ("gate", "up", "down"))
        if not all(name in self.tensors and "columns" in self.tensors[name].parts for name in (gate, up, down)):
            return super().feed_forward(x, layer)
        rounded, scale = self.rounded(x, self.tensors[gate].shape[1])
        opened = self.silu(self.node("Mul", [self.product(rounded, gate), scale]))
        mixed = self.node("Mul", [opened, self.product(rounded, up)])
        rounded, own_scale = self.rounded(mixed, self.tensors[down].shape[1])
        return self.node("Mul", [self.product(rounded, down), self.node("Mul", [own_scale, scale])])

    def rounded(self, x: str, width: int) -> tuple[str, str]:
        """x [1, T, K], rotated, as uint8 around 128, and the scale of each row [1, T, 1]."""
        x, last = self.rotated(x, width), self.constant([-1])
        reach = [self.node("ReduceMax", [x, last]), self.node("Neg", [self.node("ReduceMin", [x, last])])]
        scale = self.node(
            "Max", [self.node("Mul", [self.node("Max", reach), self.number(1 / 127)]), self.number(1e-30)]
        )
        flat = self.node("Reshape", [scale, last])
        middle = self.node(
            "ConstantOfShape", [self.node("Shape", [flat])], value=helper.make_tensor("", TensorProto.UINT8, [1], [128])
        )
        return self.node("QuantizeLinear", [x, flat, middle], axis=1), scale

    def product(self, rounded: str, weight: str) -> str:
        """Rows of `rounded` times the columns of a weight, without the scale of the row."""
        columns, scales = (self.initializer(weight, part) for part in ("columns", "column_scales"))
        inputs = [rounded, columns, self.number(1.0), scales, self.number(128)]
        return self.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)

    def rotated(self, x: str, width: int) -> str:
        """x in the rotated space in which the weights were rounded."""
        size = rotation_size(width)
        if size == 1:
            return x
        runs = self.node("Reshape", [x, self.constant([0, -1, size])])
        mixed = self.node("MatMul", [runs, self.array(f"rotation_{size}", rotation(size))])
        return self.node("Reshape", [mixed, self.constant([0, -1, width])])

    def attend(self, qkv: str, layer: int) -> str:
        """Attention over the layer's cache, extended in place."""
        return super().attend(qkv, layer) if self.kv == "fp32" else self.attend_prompt(qkv, layer)

    def attend_prompt(self, qkv: str, layer: int, present: str = "present") -> str:
        """Attention over a quantised cache; new keys and values are stored in place, then all are read as float32.

        The cache is read as whole numbers: the scales of keys multiply the queries, those of values the result.
        `present` begins the names of the extended cache.
        """
        config, width = self.config, cache_head_dim(self.config)
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        parts = self.constant([count * width for count in heads])
        index = self._count
        q, k, v = (f"{part}_{layer}_{index}" for part in ("query", "key", "value"))
        self.node("Split", [qkv, parts], q, k, v, axis=-1)
        q, k = self.rope(q, config.num_heads), self.rope(k, config.num_kv_heads)
        q = self.node("Mul", [q, self.scale_of_heads(f"scale.{layer}.key{self.slot}")])
        keys, values = self.cached(k, f"{layer}.key", present), self.cached(v, f"{layer}.value", present)
        mixed = self.node(
            "MultiHeadAttention", [q, keys, values, "", "", self._causal], domain=MICROSOFT,
            num_heads=config.num_heads, scale=config.head_dim**-0.5,
        )  # fmt: skip
        return self.node("Mul", [mixed, self.scale_of_heads(f"scale.{layer}.value{self.slot}")])

    def rope(self, x: str, heads: int) -> str:
        """Queries or keys [1, T, heads * D], rotated by their positions."""
        inputs = [x, self._start, "cos_cache", "sin_cache"]
        return self.node("RotaryEmbedding", inputs, domain=MICROSOFT, num_heads=heads)

    def cached(self, x: str, name: str, present: str) -> str:
        """All keys or values [1, H, positions, D] as whole numbers, after appending x [1, T, KV * D] to the cache."""
        config, width = self.config, cache_head_dim(self.config)
        x = self.codes(self.node("Div", [x, f"scale.{name}{self.slot}"]))
        x = self.node("Reshape", [x, self.constant([0, 0, config.num_kv_heads, width])])
        x = self.stored(self.node("Transpose", [x], perm=[0, 2, 1, 3]))
        extended = f"{present}.{name}{self.slot}"
        self.node("ScatterND", [f"past.{name}{self.slot}", self._slots, x], extended)
        ends, axis = self._end, self.constant([2])
        x = self.loaded(self.node("Slice", [extended, self.constant([0]), ends, axis]))
        groups = config.num_heads // config.num_kv_heads
        if groups == 1:
            return x
        x = self.node("Expand", [self.node("Unsqueeze", [x, axis]), self.constant([1, 1, groups, 1, 1])])
        return self.node("Reshape", [x, self.constant([1, config.num_heads, -1, width])])

    def codes(self, x: str) -> str:
        """x rounded to the codes of the cache: int8, or -8 to 7 in float32."""
        if self.kv == "int8":  # one operator, and a quarter of the bytes for the next one
            zero = self.array("zero_int8", np.array(0, np.int8))
            return self.node("QuantizeLinear", [x, self.number(1.0), zero])
        return self.node("Clip", [self.node("Round", [x]), self.number(-8.0), self.number(7.0)])

    def stored(self, x: str) -> str:
        """The result of `codes` as the cache stores it."""
        if self.kv == "int8":
            return x
        # int4: two per byte, the first in the low nibble, each plus 8
        pairs = self.node("Reshape", [x, self.constant([0, 0, 0, -1, 2])])
        parts = self.node("Mul", [pairs, self.array("halves", np.array([1, 16], np.float32))])
        bytes_ = self.node("ReduceSum", [parts, self.constant([-1])], keepdims=0)
        return self.node("Cast", [self.node("Add", [bytes_, self.number(8.0 + 16 * 8)])], to=TensorProto.UINT8)

    def loaded(self, x: str) -> str:
        """Values of the cache, converted to whole numbers in float32."""
        if self.kv == "int8":
            return self.node("Cast", [x], to=TensorProto.FLOAT)
        last = self.constant([-1])
        lower = self.node("BitwiseAnd", [x, self.number(15)])
        upper = self.node("BitShift", [x, self.number(4)], direction="RIGHT")
        pairs = self.node("Concat", [self.node("Unsqueeze", [half, last]) for half in (lower, upper)], axis=-1)
        codes = self.node("Reshape", [pairs, self.constant([0, 0, 0, -1])])
        return self.node("Sub", [self.node("Cast", [codes], to=TensorProto.FLOAT), self.number(8.0)])

    def scale_of_heads(self, scale: str) -> str:
        """A scale per channel of the cache [KV * D], repeated for the query heads that share it: [H * D]."""
        groups = self.config.num_heads // self.config.num_kv_heads
        if groups == 1:
            return scale
        x = self.node("Reshape", [scale, self.constant([self.config.num_kv_heads, 1, -1])])
        return self.node("Reshape", [self.node("Expand", [x, self.constant([1, groups, 1])]), self.constant([-1])])

    def number(self, value: float) -> str:
        """A scalar stored in the graph: uint8 for an int, else float32."""
        return self.array(f"number_{value!r}", np.array(value, np.uint8 if isinstance(value, int) else np.float32))


def probe_graph() -> onnx.ModelProto:
    """uint8 [1, 64] times int8 [64, 16] as float32; exact unless the CPU's kernel saturates at 16 bits."""
    values = [
        helper.make_tensor_value_info(*at)
        for at in (("x", TensorProto.UINT8, [1, 64]), ("w", TensorProto.INT8, [64, 16]))
    ]
    one, zero = (
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
    )
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "one", "zero"], ["y"], domain=MICROSOFT)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph([node], "ouro_edge_probe", values, [y], [one, zero])
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="ouro-edge")
