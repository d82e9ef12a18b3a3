"""One graph of the whole model, from ids to logits, with the loops unrolled as layers of their own.

For runtimes that know plain transformers only. The block's graph is repeated once a loop between an embedding and the
head; every copy names the same weights in the bundle's data file, so the file grows by names alone. Depth is fixed, all
loops for every token, and the cache is float32. Knows onnx and a bundle's graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.reference import rope_tables
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.bundle.directory import BLOCK_FILES, HEAD_FILE, DirectoryBundle
from ouro_edge.export.graphs.builder import external

# How the block's inputs follow from genai's, in onnx's own notation.
_FRONT = """
front (int64[batch, length] input_ids, int64[batch, total] attention_mask)
  => (int32[batch] seqlens_k, int32 total_length)
{
  one = Constant <value_ints = [1]> ()
  keys = ReduceSum <keepdims = 0> (attention_mask, one)
  last_key = Sub (keys, one)
  seqlens_k = Cast <to = 6> (last_key)
  total = Shape <start = 1> (attention_mask)
  total_scalar = Squeeze (total)
  total_length = Cast <to = 6> (total_scalar)
}
"""


def unrolled_graph(bundle: DirectoryBundle) -> onnx.ModelProto:
    """Logits [B, T, V] of ids [B, T] after all loops; loop r's layer i keeps its past in slot (r - 1) * layers + i."""
    config = bundle.config
    block = onnx.load(bundle.path / BLOCK_FILES["fp32"], load_external_data=False)
    head = onnx.load(bundle.path / HEAD_FILE, load_external_data=False)
    front = onnx.parser.parse_graph(_FRONT)
    embedding, constants = _embedding(bundle)
    constants = [*constants, *_rope(config), *block.graph.initializer, *head.graph.initializer]
    shared = {*(tensor.name for tensor in constants), *(value.name for value in front.output)}

    nodes = [*front.node, *embedding]
    inputs, outputs = list(front.input), list(head.graph.output)
    outputs[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", "vocabulary"]))
    for loop in range(config.loops):
        rename = partial(_name_in_loop, loop, config.num_layers, shared)
        nodes += (_renamed(node, rename) for node in block.graph.node)
        inputs += (_renamed_value(value, rename) for value in block.graph.input if value.name.startswith("past."))
        outputs += (_renamed_value(value, rename) for value in block.graph.output if value.name.startswith("present."))
    nodes += (
        _renamed(node, lambda name: f"hidden_{config.loops}" if name == "hidden" else name) for node in head.graph.node
    )
    graph = helper.make_graph(nodes, "ouro_edge_unrolled", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=block.opset_import, ir_version=block.ir_version)


def _name_in_loop(loop: int, layers: int, shared: set[str], name: str) -> str:
    """What a value of the block is called in one of its copies; the gate's logit becomes a value that nobody reads."""
    if not name or name in shared:
        return name
    if name in ("hidden", "hidden_out"):
        return f"hidden_{loop + (name == 'hidden_out')}"
    if name.startswith(("past.", "present.")):
        kind, layer, part = name.split(".")
        return f"{kind}.{loop * layers + int(layer)}.{part}"
    return f"loop{loop}.{name}"


def _renamed(node: onnx.NodeProto, rename: Callable[[str], str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:] = [rename(name) for name in node.input]
    copy.output[:] = [rename(name) for name in node.output]
    return copy


def _renamed_value(value: onnx.ValueInfoProto, rename: Callable[[str], str]) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = rename(value.name)
    return copy


def _rope(config: ModelConfig) -> list[onnx.TensorProto]:
    """The block's tables of angles for every position, which grow with use in our own runtime.

    As numbers, for onnxruntime's cosine may differ in the last bit, and a quantised model can make a token of that.
    """
    pad = (cache_head_dim(config) - config.head_dim) // 2
    tables = (np.pad(table, ((0, 0), (0, pad))) for table in rope_tables(config, config.max_positions))
    return [
        numpy_helper.from_array(table, name) for table, name in zip(tables, ("cos_cache", "sin_cache"), strict=True)
    ]


def _embedding(bundle: DirectoryBundle) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from input_ids to hidden_0, and the arrays that they read; padding of the last block is cut off."""
    tensor, width = bundle.manifest.tensors["embedding"], bundle.config.hidden_size
    arrays = {part: external(f"table.{part}", array) for part, array in tensor.parts.items()}
    if tensor.scheme is None:
        return [helper.make_node("Gather", ["table.values", "input_ids"], ["hidden_0"])], list(arrays.values())
    rows, blocks, size = arrays["packed"].dims
    arrays["packed"].dims[:] = [rows, blocks * size]
    gather = helper.make_node(
        "GatherBlockQuantized",
        ["table.packed", "input_ids", "table.scales", "table.zero_points"][: len(arrays) + 1],
        ["padded_rows"],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        bits=tensor.scheme.bits,
        block_size=tensor.scheme.block_size,
    )
    ends = [numpy_helper.from_array(np.array([at]), name) for name, at in (("from", 0), ("to", width), ("axis", 2))]
    cut = helper.make_node("Slice", ["padded_rows", "from", "to", "axis"], ["hidden_0"])
    return [gather, cut], [*arrays.values(), *ends]
