"""Builds the ONNX graphs of a bundle: the shared block with its exit gate, and the head.

The block computes one loop: its inputs are hidden [B, T, C] and the KV of one loop, its outputs the normed hidden
state, the exit gate's logit and the extended KV. The runtime calls it once per loop with the KV of that loop, so the
weights are stored once for any R.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import head_tensor
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.bundle.tensors import TensorSpec
from ouro_edge.export.graphs.builder import MICROSOFT, GraphBuilder


def block_graph(
    config: ModelConfig,
    tensors: Mapping[str, TensorSpec],
    kv: str = "fp32",
    builder: type[GraphBuilder] = GraphBuilder,
) -> onnx.ModelProto:
    """The graph of one loop over the shared block, with a KV cache of type `kv`: fp32, int8 or int4.

    A quantised cache stores round(x / scale) with a scale per channel, as int8 or as nibbles with offset 8. The scales
    are inputs [KV * D], because they differ between loops.
    """
    g = builder(config, tensors, kv)
    g.inputs("hidden", "float32", ["batch", "length", config.hidden_size])
    g.length_inputs()
    for name in ("cos_cache", "sin_cache"):
        g.inputs(name, "float32", ["positions", cache_head_dim(config) // 2])
    residual, normed = "hidden", g.norm("hidden", "layers.0.attn_norm")
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        for part in ("key", "value"):
            g.cache_inputs(i, part)
        mixed = g.linear(g.attention(g.linear(normed, layer + "qkv_proj"), i), layer + "o_proj")
        if config.sandwich_norms:
            mixed = g.norm(mixed, layer + "attn_post_norm")
        normed, residual = g.add_norm(residual, mixed, layer + "ffn_norm")
        mixed = g.feed_forward(normed, layer)
        if config.sandwich_norms:
            mixed = g.norm(mixed, layer + "ffn_post_norm")
        last = i + 1 == config.num_layers
        normed, residual = g.add_norm(residual, mixed, "norm" if last else f"layers.{i + 1}.attn_norm")
    g.outputs("hidden_out", "float32", ["batch", "length", config.hidden_size])
    g.node("Identity", [normed], "hidden_out")
    if config.has_gate:
        g.outputs("exit_logit", "float32", ["batch", "length", 1])
        # Inputs with default values, so that the runtime can bind a fitted gate instead.
        weight, bias = (g.initializer(f"exit_gate.{part}", "values") for part in ("weight", "bias"))
        g.inputs(weight, "float32", [1, config.hidden_size])
        g.inputs(bias, "float32", [1])
        g.node("Add", [g.node("FusedMatMul", [normed, weight], domain=MICROSOFT, transB=1), bias], "exit_logit")
    return g.model("ouro_edge_block")


def head_graph(config: ModelConfig, tensors: Mapping[str, TensorSpec]) -> onnx.ModelProto:
    """Logits [T, V] of normed hidden rows [T, C]."""
    g = GraphBuilder(config, tensors, rank=2)
    g.inputs("hidden", "float32", ["length", config.hidden_size])
    g.outputs("logits", "float32", ["length", config.vocab_size])
    g.linear("hidden", head_tensor(tensors), "logits")
    return g.model("ouro_edge_head")
