"""A graph builder: a model's layers as operators of onnxruntime's CPU kernels.

Operators beyond ONNX: GroupQueryAttention (rotary, in-place KV), MatMulNBits, SkipSimplifiedLayerNormalization,
QuickGelu (alpha 1 is SiLU), FusedMatMul. Weights are not read: initializers refer to the external data file by offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import fused_names
from ouro_edge.bundle.bundle import MIDDLE_POINTS, cache_head_dim
from ouro_edge.bundle.tensors import TensorSpec
from ouro_edge.export.graphs.values import external, value_info

MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
IR_VERSION = 10  # the oldest with opset 21, so that older onnxruntime versions can load it
CACHE_TYPES = {"fp32": "float32", "int8": "int8", "int4": "uint8"}
# MatMulNBits accuracy_level: activations rounded to int8 in blocks; float32 (level 0) on CPUs without such a kernel.
INT8_COMPUTE = 4


class GraphBuilder:
    """Collects the nodes, values and initializers of a graph."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, TensorSpec], kv: str = "fp32", rank: int = 3) -> None:
        self.config = config
        self.tensors = tensors
        self.kv = kv
        self.rank = rank  # axes of what `linear` gets: [B, T, C] or [T, C]
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0  # of nodes, also those in subgraphs; makes names unique
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._in: list[onnx.ValueInfoProto] = []
        self._out: list[onnx.ValueInfoProto] = []

    def inputs(self, name: str, dtype: str, shape: list[Any]) -> None:
        self._in.append(value_info(name, dtype, shape))

    def outputs(self, name: str, dtype: str, shape: list[Any]) -> None:
        self._out.append(value_info(name, dtype, shape))

    def node(self, op: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """Append an operator of `domain` ("" is ONNX's own) and return the name of its first output."""
        index = self._count
        self._count += 1
        outputs = outputs or (f"{op}_{index}",)
        self._nodes.append(helper.make_node(op, inputs, list(outputs), f"{op}_{index}", domain=domain, **attributes))
        return outputs[0]

    def initializer(self, tensor: str, part: str) -> str:
        """The name of one array of a stored tensor, as an initializer.

        A tensor [N, K] has the parts `values` (float32), or `packed`, `scales` and unless symmetric `zero_points` (see
        `Scheme.parts`), with `offsets` [N, blocks] where a GGUF type adds a number to each block, or `columns` [K, N]
        int8 and `column_scales` [N] (prefill weights).
        """
        name = f"{tensor}.{part}"
        self._initializers.setdefault(name, external(name, self.tensors[tensor].parts[part]))
        return name

    def constant(self, values: list[int]) -> str:
        """A small shape or index, stored in the graph itself."""
        name = "constant_" + "_".join(map(str, values))
        self._initializers.setdefault(name, helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def array(self, name: str, values: NDArray[Any]) -> str:
        """An array stored in the graph itself, under a name that describes its content."""
        self._initializers.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def norm(self, x: str, weight: str) -> str:
        inputs = [x, self.norm_weights(weight)]
        return self.node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=self.config.rms_norm_eps)

    def norm_weights(self, weight: str) -> str:
        """The weights of a norm; ones in families whose norms have none, because the operator takes some."""
        if self.config.family.norm_weights:
            return self.initializer(weight, "values")
        return self.array("ones", np.ones(self.config.hidden_size, np.float32))

    def add_norm(self, residual: str, x: str, weight: str) -> tuple[str, str]:
        """norm(residual + x) and the sum itself."""
        index = self._count
        total = f"residual_{index}"
        inputs = [residual, x, self.norm_weights(weight)]
        names = (f"normed_{index}", "", "", total)
        op = "SkipSimplifiedLayerNormalization"
        return self.node(op, inputs, *names, domain=MICROSOFT, epsilon=self.config.rms_norm_eps), total

    def linear(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T in the format that the tensor is stored in."""
        if weight not in self.tensors:  # parts in different formats: one operator each
            parts = [self.linear(x, part) for part in fused_names(self.config)[weight]]
            return self.node("Concat", parts, *outputs, axis=-1)
        tensor = self.tensors[weight]
        if tensor.scheme is None:
            inputs = [x, self.initializer(weight, "values")]
            return self.node("FusedMatMul", inputs, *outputs, domain=MICROSOFT, transB=1)
        if "offsets" in tensor.parts:
            return self.with_offsets(x, weight, *outputs)
        return self.matmul_nbits(x, weight, *outputs)

    def with_offsets(self, x: str, weight: str, *outputs: str) -> str:
        """A linear layer with an offset per block of weights: adds each offset times the sum of the block's inputs."""
        blocks = self.tensors[weight].parts["offsets"].shape[1]
        lead = [0] * (self.rank - 1)
        blocked = self.node("Reshape", [x, self.constant([*lead, blocks, -1])])
        sums = self.node("ReduceSum", [blocked, self.constant([self.rank])], keepdims=0)
        offsets = self.initializer(weight, "offsets")
        added = self.node("FusedMatMul", [sums, offsets], domain=MICROSOFT, transB=1)
        return self.node("Add", [self.matmul_nbits(x, weight), added], *outputs)

    def matmul_nbits(self, x: str, weight: str, *outputs: str) -> str:
        """x @ weight.T, computed from the stored codes."""
        tensor = self.tensors[weight]
        assert tensor.scheme is not None
        n, k = tensor.shape
        inputs = [x, self.initializer(weight, "packed"), self.initializer(weight, "scales")]
        if not tensor.scheme.symmetric:
            inputs.append(self.initializer(weight, "zero_points"))
        elif tensor.scheme.bits == 4:
            inputs.append(self.middle_points(n, tensor.scheme.blocks(k)))
        return self.node(
            "MatMulNBits", inputs, *outputs, domain=MICROSOFT, K=k, N=n,
            bits=tensor.scheme.bits, block_size=tensor.scheme.block_size, accuracy_level=INT8_COMPUTE,
        )  # fmt: skip

    def middle_points(self, rows: int, blocks: int) -> str:
        """Zero points of 8, which 4-bit weights have without them too, for all matrices of this size.

        On ARM64, onnxruntime rounds activations in blocks where it is given zero points; without them, its KleidiAI
        kernels round a whole row with one scale, which is several times less accurate.
        """
        return self.array(f"{MIDDLE_POINTS}.{rows}x{blocks}", np.full((rows, -(-blocks // 2)), 0x88, np.uint8))

    def self_attention(self, x: str, layer: str, index: int) -> str:
        """Attention over x [B, T, C] before the output projection: weights of a layer, cache number `index`."""
        if not self.config.family.attention_gate:
            return self.attention(self.adjusted(self.linear(x, layer + "qkv_proj"), layer, index), index)
        config, qkv, gate = self.config, f"qkv_{index}", f"attention_gate_{index}"
        sizes = self.constant([config.q_size + 2 * config.kv_size, config.q_size])
        self.node("Split", [self.linear(x, layer + "qkv_gate_proj"), sizes], qkv, gate, axis=-1)
        return self.node("Mul", [self.attention(qkv, index), self.node("Sigmoid", [gate])])

    def adjusted(self, qkv: str, layer: str, index: int) -> str:
        """Queries, keys and values with the biases and norms of a layer, where the model has them."""
        config = self.config
        if config.qkv_bias:
            qkv = self.node("Add", [qkv, self.initializer(layer + "qkv_bias", "values")])
        if not config.family.qk_norm:
            return qkv
        parts = [f"{part}_{index}" for part in ("queries", "keys", "values")]
        sizes = self.constant([config.q_size, config.kv_size, config.kv_size])
        self.node("Split", [qkv, sizes], *parts, axis=-1)
        normed = [self.norm(rows, f"{layer}{part}_norm") for rows, part in zip(parts, "qk", strict=False)]
        return self.node("Concat", [*normed, parts[2]], axis=-1)

    def attention(self, qkv: str, layer: int) -> str:
        """Rotary attention over the layer's cache, extended in place; heads are padded to the cache's width."""
        config, padded = self.config, cache_head_dim(self.config)
        if padded == config.head_dim:
            return self.attend_both(qkv, layer)
        heads = config.num_heads + 2 * config.num_kv_heads
        halves = self.node("Reshape", [qkv, self.constant([0, 0, heads, 2, config.head_dim // 2])])
        halves = self.node("Pad", [halves, self.constant([0] * 9 + [(padded - config.head_dim) // 2])])
        mixed = self.attend_both(self.node("Reshape", [halves, self.constant([0, 0, heads * padded])]), layer)
        halves = self.node("Reshape", [mixed, self.constant([0, 0, config.num_heads, 2, padded // 2])])
        ends, axes = self.constant([config.head_dim // 2]), self.constant([4])
        halves = self.node("Slice", [halves, self.constant([0]), ends, axes])
        return self.node("Reshape", [halves, self.constant([0, 0, config.q_size])])

    def attend_both(self, qkv: str, layer: int) -> str:
        """Causal attention, or that of a prefix: rows from position 0 on that see each other in both directions.

        GroupQueryAttention, which is causal, extends the cache in both cases; the input `bidirectional` chooses.
        """
        mixed, config = self.attend(qkv, layer), self.config
        if not config.prefix_lm:
            return mixed
        assert config.num_heads == config.num_kv_heads  # see `ModelConfig`
        heads = config.num_heads
        q, k, v = (f"prefix_{part}_{layer}" for part in "qkv")
        self.node("Split", [qkv], q, k, v, axis=-1, num_outputs=3)
        start = self.constant([0])
        turned = [
            self.node("RotaryEmbedding", [x, start, "cos_cache", "sin_cache"], domain=MICROSOFT, num_heads=heads)
            for x in (q, k)
        ]
        attributes: dict[str, Any] = {"num_heads": heads, "scale": config.head_dim**-0.5}
        block = self.node("MultiHeadAttention", [*turned, v], domain=MICROSOFT, **attributes)
        return self.node("Where", ["bidirectional", block, mixed])

    def attend(self, qkv: str, layer: int) -> str:
        """Attention [B, T, H * D] of the layer's concatenated queries, keys and values [B, T, (H + 2 KV) * D]."""
        inputs, attributes = self.attention_inputs(qkv, layer)
        outputs = (f"attention_{layer}", f"present.{layer}.key", f"present.{layer}.value")
        return self.node("GroupQueryAttention", inputs, *outputs, domain=MICROSOFT, **attributes)

    def attention_inputs(self, qkv: str, layer: int, slot: str = "") -> tuple[list[str], dict[str, Any]]:
        """Inputs and attributes of one attention node; `slot` ends the names of what belongs to a cache."""
        config = self.config
        inputs = [qkv, "", "", f"past.{layer}.key{slot}", f"past.{layer}.value{slot}"]
        inputs += [f"seqlens_k{slot}", f"total_length{slot}", "cos_cache", "sin_cache"]
        attributes: dict[str, Any] = {"do_rotary": 1, "rotary_interleaved": 0, "num_heads": config.num_heads}
        attributes |= {"kv_num_heads": config.num_kv_heads, "scale": config.head_dim**-0.5}
        if self.kv != "fp32":
            inputs += ["", "", "", f"scale.{layer}.key{slot}", f"scale.{layer}.value{slot}"]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
            attributes |= {"kv_cache_bit_width": int(self.kv.removeprefix("int"))}
        return inputs, attributes

    def cache_inputs(self, layer: int, part: str) -> None:
        """Inputs and outputs of one layer's keys or values."""
        config, kind = self.config, CACHE_TYPES[self.kv]
        width = cache_head_dim(config) // (2 if self.kv == "int4" else 1)  # two nibbles a byte
        shape = ["batch", config.num_kv_heads, "capacity", width]
        self.inputs(f"past.{layer}.{part}", kind, shape)
        self.outputs(f"present.{layer}.{part}", kind, shape)
        if self.kv != "fp32":
            self.inputs(f"scale.{layer}.{part}", "float32", [config.num_kv_heads * cache_head_dim(config)])

    def length_inputs(self) -> None:
        """Lengths of the cache."""
        self.inputs("seqlens_k", "int32", ["batch"])  # keys after this call, minus one
        self.inputs("total_length", "int32", [])

    def feed_forward(self, x: str, layer: str) -> str:
        """down(silu(gate(x)) * up(x)) with the weights of a layer, whose name ends with a dot."""
        index = self._count
        gate, up = f"gate_{index}", f"up_{index}"
        self.node("Split", [self.linear(x, layer + "gate_up_proj")], gate, up, axis=-1, num_outputs=2)
        return self.linear(self.node("Mul", [self.silu(gate), up]), layer + "down_proj")

    def silu(self, x: str) -> str:
        return self.node("QuickGelu", [x], domain=MICROSOFT, alpha=1.0)

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, self._in, self._out, list(self._initializers.values()))
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="ouro-edge")
