"""Builds the ONNX graphs of a bundle: one for each stack of layers, usually the shared block alone, and the head.

A graph computes one pass: its inputs are state rows [B, T, W] and the KV of one pass, its outputs the new rows, the
exit gate's logit and the extended KV. The runtime calls it once per pass with the KV of that pass, so the weights are
stored once for any R.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK, Stack, loop_program
from ouro_edge.arch.weights import head_tensor
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.bundle.tensors import TensorSpec
from ouro_edge.export.graphs.builder import MICROSOFT, GraphBuilder


def block_graph(
    config: ModelConfig,
    tensors: Mapping[str, TensorSpec],
    kv: str = "fp32",
    builder: type[GraphBuilder] = GraphBuilder,
    stack: str = BLOCK,
) -> onnx.ModelProto:
    """The graph of one pass through a stack, by default the shared block, with a KV cache of type `kv`.

    `kv` is fp32, int8 or int4. A quantised cache stores round(x / scale) with a scale per channel, as int8 or as
    nibbles with offset 8. The scales are inputs [KV * D], because they differ between passes. Layers of the cache are
    numbered from 0 in every stack.
    """
    program = loop_program(config)
    part = program.stack(stack)
    g = builder(config, tensors, kv)
    g.inputs("hidden", "float32", ["batch", "length", program.width])
    g.length_inputs()
    for name in ("cos_cache", "sin_cache"):
        g.inputs(name, "float32", ["positions", cache_head_dim(config) // 2])
    if config.prefix_lm:
        g.inputs("bidirectional", "bool", [1])
    residual, kept = _entry(g, part)
    has_input_norms, closing = config.norms != "after the branch", "norm" if part.closing_norm else None
    first = f"layers.{part.layers[0]}.attn_norm"
    normed = g.norm(residual, first) if has_input_norms else residual
    for i, number in enumerate(part.layers):
        layer = f"layers.{number}."
        for half in ("key", "value"):
            g.cache_inputs(i, half)
        mixed = g.linear(g.self_attention(normed, layer, i), layer + "o_proj")
        following = layer + "ffn_norm" if has_input_norms else None
        normed, residual = _add_part(g, residual, mixed, layer + "attn_post_norm", following)
        mixed = g.feed_forward(normed, layer)
        if number == part.layers[-1]:
            following = closing
        elif has_input_norms:
            following = f"layers.{number + 1}.attn_norm"
        normed, residual = _add_part(g, residual, mixed, layer + "ffn_post_norm", following)
    g.outputs("hidden_out", "float32", ["batch", "length", program.width])
    parts = {"row": [normed], "first": [normed, kept], "second": [kept, normed], "both": [residual, normed]}
    if part.writes == "row":
        g.node("Identity", [normed], "hidden_out")
    else:
        g.node("Concat", parts[part.writes], "hidden_out", axis=-1)
    if config.has_gate:
        g.outputs("exit_logit", "float32", ["batch", "length", 1])
        # Inputs with default values, so that the runtime can bind a fitted gate instead.
        weight, bias = (g.initializer(f"exit_gate.{part}", "values") for part in ("weight", "bias"))
        g.inputs(weight, "float32", [1, config.hidden_size])
        g.inputs(bias, "float32", [1])
        g.node("Add", [g.node("FusedMatMul", [normed, weight], domain=MICROSOFT, transB=1), bias], "exit_logit")
    return g.model(f"ouro_edge_{stack}")


def _add_part(g: GraphBuilder, residual: str, mixed: str, post: str, following: str | None) -> tuple[str, str]:
    """The output of one part of a layer added to its input, with norms where `ModelConfig.norms` says.

    Returns what enters the next part, behind the norm `following` if there is one, and the sum itself.
    """
    norms = g.config.norms
    if norms == "after the sum":
        total, _ = g.add_norm(residual, mixed, post)
        return (total if following is None else g.norm(total, following)), total
    if norms != "before":
        mixed = g.norm(mixed, post)
    if following is not None:
        return g.add_norm(residual, mixed, following)
    total = g.node("Add", [residual, mixed])
    return total, total


def _entry(g: GraphBuilder, stack: Stack) -> tuple[str, str]:
    """What enters the first layer, and the part of the row that the pass keeps."""
    if stack.reads == "row":
        return "hidden", ""
    g.node("Split", ["hidden"], "first_part", "second_part", axis=-1, num_outputs=2)
    entry = "second_part" if stack.reads == "second" else "first_part"
    if stack.reads == "sum":
        entry = g.node("Add", ["first_part", "second_part"])
    elif stack.reads == "adapter":
        entry = g.linear(g.node("Concat", ["second_part", "first_part"], axis=-1), "adapter")
    if stack.opening_norm:
        entry = g.norm(entry, "norm")
    return entry, "second_part" if stack.writes == "first" else "first_part"


def head_graph(config: ModelConfig, tensors: Mapping[str, TensorSpec]) -> onnx.ModelProto:
    """Logits [T, V] of normed hidden rows [T, C]."""
    g = GraphBuilder(config, tensors, rank=2)
    g.inputs("hidden", "float32", ["length", config.hidden_size])
    g.outputs("logits", "float32", ["length", config.vocab_size])
    g.linear("hidden", head_tensor(tensors), "logits")
    return g.model("ouro_edge_head")
