"""Builds the two ONNX graphs of a bundle: the shared block with its exit gate, and the head. Knows onnx and config.

The block is one loop: hidden [B, T, C] and one loop's KV in, the normed hidden state, the exit gate's logit and the
grown KV out. The runtime calls it once per loop with that loop's KV, so weights exist once whatever R is. Nothing here
reads a weight: initializers point into the external data file by offset.

Operators beyond ONNX are onnxruntime's CPU kernels: GroupQueryAttention (rotary, in-place KV), MatMulNBits,
SkipSimplifiedLayerNormalization, QuickGelu (alpha 1 is SiLU), FusedMatMul.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from ouro_edge.bundle import DATA_FILE, cache_head_dim
from ouro_edge.config import ModelConfig
from ouro_edge.manifest import StoredArray, StoredTensor
from ouro_edge.weights import fused_names

_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
_IR_VERSION = 10  # the oldest that carries opset 21, so that older onnxruntime loads it
_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
}
_CACHE_TYPES = {"fp32": "float32", "int8": "int8", "int4": "uint8"}
# MatMulNBits accuracy_level: activations rounded to int8 per block, in float32 (level 0) where the CPU has no kernel.
INT8_COMPUTE = 4


def block_graph(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], kv: str = "fp32", accuracy_level: int = INT8_COMPUTE
) -> onnx.ModelProto:
    """The graph of one loop over the shared block, with a KV cache of type `kv`: fp32, int8 or int4.

    A quantised cache holds round(x / scale) with a scale per channel, in int8, or in nibbles offset by 8. The scales
    are inputs [KV * D], because they differ from loop to loop.
    """
    g = _Graph(config, tensors, kv, accuracy_level=accuracy_level)
    g.inputs("hidden", "float32", ["batch", "length", config.hidden_size])
    g.inputs("seqlens_k", "int32", ["batch"])  # keys after this call, minus one
    g.inputs("total_length", "int32", [])
    for name in ("cos_cache", "sin_cache"):
        g.inputs(name, "float32", ["positions", cache_head_dim(config) // 2])
    width = cache_head_dim(config) // (2 if kv == "int4" else 1)  # two nibbles a byte
    kv_type, kv_shape = _CACHE_TYPES[kv], ["batch", config.num_kv_heads, "capacity", width]
    residual, normed = "hidden", g.norm("hidden", "layers.0.attn_norm")
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        for part in ("key", "value"):
            g.inputs(f"past.{i}.{part}", kv_type, kv_shape)
            g.outputs(f"present.{i}.{part}", kv_type, kv_shape)
            if kv != "fp32":
                g.inputs(f"scale.{i}.{part}", "float32", [config.num_kv_heads * cache_head_dim(config)])
        mixed = g.linear(g.attention(g.linear(normed, layer + "qkv_proj"), i), layer + "o_proj")
        if config.sandwich_norms:
            mixed = g.norm(mixed, layer + "attn_post_norm")
        normed, residual = g.add_norm(residual, mixed, layer + "ffn_norm")
        mixed = g.linear(g.gated(g.linear(normed, layer + "gate_up_proj")), layer + "down_proj")
        if config.sandwich_norms:
            mixed = g.norm(mixed, layer + "ffn_post_norm")
        last = i + 1 == config.num_layers
        normed, residual = g.add_norm(residual, mixed, "norm" if last else f"layers.{i + 1}.attn_norm")
    g.outputs("hidden_out", "float32", ["batch", "length", config.hidden_size])
    g.node("Identity", [normed], "hidden_out")
    if config.has_gate:
        g.outputs("exit_logit", "float32", ["batch", "length", 1])
        # Inputs with a default: the runtime may bind a gate that was fitted to this bundle instead.
        weight, bias = (g.initializer(f"exit_gate.{part}", "values") for part in ("weight", "bias"))
        g.inputs(weight, "float32", [1, config.hidden_size])
        g.inputs(bias, "float32", [1])
        g.node("Add", [g.node("FusedMatMul", [normed, weight], domain=True, transB=1), bias], "exit_logit")
    return g.model("ouro_edge_block")


def head_graph(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> onnx.ModelProto:
    """Logits [T, V] of normed hidden rows [T, C]."""
    g = _Graph(config, tensors, rank=2)
    g.inputs("hidden", "float32", ["length", config.hidden_size])
    g.outputs("logits", "float32", ["length", config.vocab_size])
    g.linear("hidden", "embedding" if config.tie_word_embeddings and "head" not in tensors else "head", "logits")
    return g.model("ouro_edge_head")


def probe_graph() -> onnx.ModelProto:
    """[1, 64] of uint8 times [64, 16] of int8, as float32: exact unless this CPU's kernel saturates in 16 bits."""
    values = [
        helper.make_tensor_value_info(*at)
        for at in (("x", TensorProto.UINT8, [1, 64]), ("w", TensorProto.INT8, [64, 16]))
    ]
    one, zero = (
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
    )
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "one", "zero"], ["y"], domain="com.microsoft")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph([node], "ouro_edge_probe", values, [y], [one, zero])
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION, producer_name="ouro-edge")


class _Graph:
    """Collects nodes, values and the initializers that nodes name."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, StoredTensor], kv: str = "fp32", rank: int = 3,
        accuracy_level: int = INT8_COMPUTE,
    ) -> None:  # fmt: skip
        self.config, self.tensors, self.kv, self.rank = config, tensors, kv, rank
        self.accuracy_level = accuracy_level
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._in: list[onnx.ValueInfoProto] = []
        self._out: list[onnx.ValueInfoProto] = []

    def inputs(self, name: str, dtype: str, shape: list[Any]) -> None:
        self._in.append(_value(name, dtype, shape))

    def outputs(self, name: str, dtype: str, shape: list[Any]) -> None:
        self._out.append(_value(name, dtype, shape))

    def node(self, op: str, inputs: list[str], *outputs: str, domain: bool = False, **attributes: Any) -> str:
        index = len(self._nodes)
        outputs = outputs or (f"{op}_{index}",)
        where = "com.microsoft" if domain else ""
        self._nodes.append(helper.make_node(op, inputs, list(outputs), f"{op}_{index}", domain=where, **attributes))
        return outputs[0]

    def initializer(self, tensor: str, part: str) -> str:
        name = f"{tensor}.{part}"
        self._initializers.setdefault(name, _external(name, self.tensors[tensor].parts[part]))
        return name

    def constant(self, values: list[int]) -> str:
        """A small shape or index, kept in the graph itself."""
        name = "constant_" + "_".join(map(str, values))
        self._initializers.setdefault(name, helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def norm(self, x: str, weight: str) -> str:
        inputs = [x, self.initializer(weight, "values")]
        return self.node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=self.config.rms_norm_eps)

    def add_norm(self, residual: str, x: str, weight: str) -> tuple[str, str]:
        """norm(residual + x) and the sum itself."""
        index = len(self._nodes)
        total = f"residual_{index}"
        inputs = [residual, x, self.initializer(weight, "values")]
        names = (f"normed_{index}", "", "", total)
        op = "SkipSimplifiedLayerNormalization"
        return self.node(op, inputs, *names, domain=True, epsilon=self.config.rms_norm_eps), total

    def linear(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T in the format that the tensor is stored in."""
        if weight not in self.tensors:  # parts in different formats: each for itself
            parts = [self.linear(x, part) for part in fused_names(self.config)[weight]]
            return self.node("Concat", parts, *outputs, axis=-1)
        tensor = self.tensors[weight]
        if "columns" in tensor.parts:
            return self.by_column(x, weight, *outputs)
        if tensor.scheme is None:
            return self.node("FusedMatMul", [x, self.initializer(weight, "values")], *outputs, domain=True, transB=1)
        if "offsets" in tensor.parts:
            return self.with_offsets(x, weight, *outputs)
        return self.matmul_nbits(x, weight, *outputs)

    def by_column(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T on integers: x [1, T, K] in uint8 with a scale for each row, weights in int8 for each column."""
        last = self.constant([-1])
        reach = [self.node("ReduceMax", [x, last]), self.node("Neg", [self.node("ReduceMin", [x, last])])]
        scale = self.node(
            "Max", [self.node("Mul", [self.node("Max", reach), self.number(1 / 127)]), self.number(1e-30)]
        )
        flat = self.node("Reshape", [scale, last])
        middle = self.node(
            "ConstantOfShape", [self.node("Shape", [flat])], value=helper.make_tensor("", TensorProto.UINT8, [1], [128])
        )
        rounded = self.node("QuantizeLinear", [x, flat, middle], axis=1)
        columns, scales = (self.initializer(weight, part) for part in ("columns", "column_scales"))
        inputs = [rounded, columns, self.number(1.0), scales, self.number(128)]
        return self.node("Mul", [self.node("MatMulIntegerToFloat", inputs, domain=True), scale], *outputs)

    def number(self, value: float) -> str:
        """A scalar kept in the graph: float32, or uint8 for a whole number."""
        name, kind = f"number_{value:g}", TensorProto.UINT8 if isinstance(value, int) else TensorProto.FLOAT
        self._initializers.setdefault(name, helper.make_tensor(name, kind, [], [value]))
        return name

    def with_offsets(self, x: str, weight: str, *outputs: str) -> str:
        """A linear layer whose every block adds one number to all its weights: that number times the inputs' sum."""
        blocks = self.tensors[weight].parts["offsets"].shape[1]
        lead = [0] * (self.rank - 1)
        blocked = self.node("Reshape", [x, self.constant([*lead, blocks, -1])])
        sums = self.node("ReduceSum", [blocked, self.constant([self.rank])], keepdims=0)
        offsets = self.initializer(weight, "offsets")
        added = self.node("FusedMatMul", [sums, offsets], domain=True, transB=1)
        return self.node("Add", [self.matmul_nbits(x, weight), added], *outputs)

    def matmul_nbits(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T, computed on the stored codes."""
        tensor = self.tensors[weight]
        assert tensor.scheme is not None
        n, k = tensor.shape
        inputs = [x, self.initializer(weight, "packed"), self.initializer(weight, "scales")]
        if not tensor.scheme.symmetric:
            inputs.append(self.initializer(weight, "zero_points"))
        return self.node(
            "MatMulNBits", inputs, *outputs, domain=True, K=k, N=n,
            bits=tensor.scheme.bits, block_size=tensor.scheme.block_size, accuracy_level=self.accuracy_level,
        )  # fmt: skip

    def attention(self, qkv: str, layer: int) -> str:
        config, padded = self.config, cache_head_dim(self.config)
        if padded != config.head_dim:
            heads = config.num_heads + 2 * config.num_kv_heads
            halves = self.node("Reshape", [qkv, self.constant([0, 0, heads, 2, config.head_dim // 2])])
            fill = [0] * 9 + [(padded - config.head_dim) // 2]
            halves = self.node("Pad", [halves, self.constant(fill)])
            qkv = self.node("Reshape", [halves, self.constant([0, 0, heads * padded])])
        inputs = [qkv, "", "", f"past.{layer}.key", f"past.{layer}.value", "seqlens_k", "total_length"]
        outputs = (f"attention_{layer}", f"present.{layer}.key", f"present.{layer}.value")
        inputs += ["cos_cache", "sin_cache"]
        attributes: dict[str, Any] = {}
        if self.kv != "fp32":
            inputs += ["", "", "", f"scale.{layer}.key", f"scale.{layer}.value"]
            kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
            attributes = {**kinds, "kv_cache_bit_width": int(self.kv.removeprefix("int"))}
        mixed = self.node(
            "GroupQueryAttention", inputs, *outputs, domain=True, do_rotary=1, rotary_interleaved=0,
            num_heads=config.num_heads, kv_num_heads=config.num_kv_heads, scale=config.head_dim**-0.5, **attributes,
        )  # fmt: skip
        if padded == config.head_dim:
            return mixed
        halves = self.node("Reshape", [mixed, self.constant([0, 0, config.num_heads, 2, padded // 2])])
        ends, axes = self.constant([config.head_dim // 2]), self.constant([4])
        halves = self.node("Slice", [halves, self.constant([0]), ends, axes])
        return self.node("Reshape", [halves, self.constant([0, 0, config.q_size])])

    def gated(self, gate_up: str) -> str:
        """silu(gate) * up of the concatenated halves."""
        index = len(self._nodes)
        gate, up = f"gate_{index}", f"up_{index}"
        self.node("Split", [gate_up], gate, up, axis=-1, num_outputs=2)
        return self.node("Mul", [self.node("QuickGelu", [gate], domain=True, alpha=1.0), up])

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, self._in, self._out, list(self._initializers.values()))
        return helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION, producer_name="ouro-edge")


def _value(name: str, dtype: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _TYPES[dtype], shape)


def _external(name: str, array: StoredArray) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=_TYPES[array.dtype], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", array.offset), ("length", array.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
