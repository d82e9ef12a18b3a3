"""Checks that a graph of an exported model is of the kind that the exporter writes, before onnxruntime opens it.

An untrusted model has whatever checksums its author chose. onnxruntime would run any operator and map any
range of bytes: the check permits only the operators below without subgraphs or functions, only the inputs and outputs
that the runtime binds, and only arrays that the manifest lists, at the manifest's position in the data file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import BLOCK, loop_program
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.bundle.graph_fields import Message, read_model
from ouro_edge.bundle.manifest import StoredTensor
from ouro_edge.errors import BundleError, one_line

_MOST_BYTES = 64 << 20  # of a graph file, which holds no weights
_OPSETS = {"": 21, "com.microsoft": 1}
# Attributes of every operator in `export/graphs`; an operator or attribute that is added there belongs here too.
_OPERATORS: dict[tuple[str, str], set[str]] = {
    ("", "Add"): set(),
    ("", "Concat"): {"axis"},
    ("", "Identity"): set(),
    ("", "Mul"): set(),
    ("", "Pad"): set(),
    ("", "ReduceSum"): {"keepdims"},
    ("", "Reshape"): set(),
    ("", "Sigmoid"): set(),
    ("", "SimplifiedLayerNormalization"): {"axis", "epsilon"},
    ("", "Slice"): set(),
    ("", "Split"): {"axis", "num_outputs"},
    ("", "Where"): set(),
    ("com.microsoft", "FusedMatMul"): {"transB"},
    ("com.microsoft", "GroupQueryAttention"): {
        "do_rotary", "rotary_interleaved", "num_heads", "kv_num_heads", "scale", "k_quant_type", "v_quant_type",
        "kv_cache_bit_width",
    },
    ("com.microsoft", "MatMulNBits"): {"K", "N", "bits", "block_size", "accuracy_level"},
    ("com.microsoft", "MultiHeadAttention"): {"num_heads", "scale"},
    ("com.microsoft", "QuickGelu"): {"alpha"},
    ("com.microsoft", "RotaryEmbedding"): {"num_heads"},
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): {"epsilon"},
}  # fmt: skip
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}  # TensorProto.DataType
_CACHE_TYPES = {"fp32": "float32", "int8": "int8", "int4": "uint8"}
_ONE = b"\0\0\x80\x3f"  # as a float32
_EXTERNAL = 1  # TensorProto.DataLocation

Values = dict[str, tuple[str, tuple[int, ...]]]  # name -> type and sizes, 0 for a size that may vary


def check_block(
    file: Path, config: ModelConfig, kv: str, tensors: Mapping[str, StoredTensor], data_file: str, stack: str = BLOCK
) -> None:
    """Check the graph of a stack over a cache of type `kv`. BundleError says what it holds that is never written."""
    _check(file, *_block_values(config, kv, tensors, stack), tensors, data_file)


def check_head(file: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor], data_file: str) -> None:
    """Check the graph of the head. BundleError says what it holds that is never written."""
    inputs: Values = {"hidden": ("float32", (0, config.hidden_size))}
    _check(file, inputs, {"logits": ("float32", (0, config.vocab_size))}, tensors, data_file)


def _block_values(
    config: ModelConfig, kv: str, tensors: Mapping[str, StoredTensor], stack: str
) -> tuple[Values, Values]:
    """Inputs and outputs of the graph of a stack."""
    program = loop_program(config)
    padded, heads = cache_head_dim(config), config.num_kv_heads
    states = ("float32", (0, 0, program.width))
    inputs: Values = {"hidden": states, "seqlens_k": ("int32", (0,)), "total_length": ("int32", ())}
    inputs |= dict.fromkeys(("cos_cache", "sin_cache"), ("float32", (0, padded // 2)))
    outputs: Values = {"hidden_out": states}
    if config.prefix_lm:
        inputs["bidirectional"] = ("bool", (1,))
    for layer in range(len(program.stack(stack).layers)):
        for part in ("key", "value"):
            cache = (_CACHE_TYPES[kv], (0, heads, 0, padded // 2 if kv == "int4" else padded))
            inputs[f"past.{layer}.{part}"] = outputs[f"present.{layer}.{part}"] = cache
            if kv != "fp32":
                inputs[f"scale.{layer}.{part}"] = ("float32", (heads * padded,))
    if config.has_gate:
        outputs["exit_logit"] = ("float32", (0, 0, 1))
        for name in ("exit_gate.weight", "exit_gate.bias"):
            inputs[f"{name}.values"] = ("float32", tensors[name].shape)
    return inputs, outputs


def _check(file: Path, inputs: Values, outputs: Values, tensors: Mapping[str, StoredTensor], data_file: str) -> None:
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes")
        model = read_model(file.read_bytes())
        if (found := {one.text("domain"): one.number("version") for one in model["opset_import"]}) != _OPSETS:
            raise ValueError(f"it needs the operator sets {found}")
        graph = model["graph"]
        for node in graph["node"]:
            _check_node(node)
        for name, expected in (("input", inputs), ("output", outputs)):
            _check_values(name, [_value(one) for one in graph[name]], expected)
        for initializer in graph["initializer"]:
            _check_initializer(initializer, tensors, data_file)
    except OSError as problem:
        raise BundleError(f"{file} cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        text = one_line(problem, 300)
        raise BundleError(f"{file} is not a graph that ouro-edge writes: {text}; export again") from None


def _check_node(node: Message) -> None:
    domain, operator = node.text("domain"), node.text("op_type")
    name = f"{domain}.{operator}".removeprefix(".")
    if (domain, operator) not in _OPERATORS:
        raise ValueError(f"it uses the operator {name}")
    known = _OPERATORS[domain, operator]
    if other := {one.text("name") for one in node["attribute"]} - known:
        raise ValueError(f"it uses {min(other)!r} of the operator {name}")


def _value(one: Message) -> tuple[str, tuple[int, tuple[int, ...]]]:
    kind = one["type"]["tensor_type"]
    return one.text("name"), (kind.number("elem_type"), tuple(at.number("dim_value") for at in kind["shape"]["dim"]))


def _check_values(what: str, found: list[tuple[str, tuple[int, tuple[int, ...]]]], expected: Values) -> None:
    kinds = {name: (_TYPES[dtype], shape) for name, (dtype, shape) in expected.items()}
    if missing := kinds.keys() - dict(found):
        raise ValueError(f"it has no {what} {min(missing)!r}")
    seen = set[str]()
    for name, kind in found:
        if name in seen or kinds.get(name) != kind:
            raise ValueError(f"its {what} {name!r} has type and sizes {kind}, not {kinds.get(name)}")
        seen.add(name)


def _check_initializer(one: Message, tensors: Mapping[str, StoredTensor], data_file: str) -> None:
    """A shape, an index, ones or zero points of 8 in the graph itself, or an array of the manifest at its place."""
    name = one.text("name")
    if one.number("data_location") != _EXTERNAL:
        kind = one.number("data_type")
        points = kind == _TYPES["uint8"] and set(one.data("raw_data")) == {0x88}
        ones = kind == _TYPES["float32"] and not one.data("raw_data").replace(_ONE, b"")
        if one["external_data"] or not (points or ones or kind == _TYPES["int64"]):
            raise ValueError(f"the constant {name!r} is neither whole numbers, ones nor zero points of 8")
        return
    tensor, _, part = name.rpartition(".")
    if tensor not in tensors or part not in tensors[tensor].parts:
        raise ValueError(f"it reads {name!r}, which the manifest does not list")
    stored = tensors[tensor].parts[part]
    pairs = [(at.text("key"), at.text("value")) for at in one["external_data"]]
    place = {"location": data_file, "offset": str(stored.offset), "length": str(stored.size)}
    if len(pairs) != len(place) or dict(pairs) != place:
        raise ValueError(f"it reads {name!r} at {dict(pairs)}, the manifest says {place}")
    if (one.number("data_type"), one.numbers("dims")) != (_TYPES[stored.dtype], stored.shape):
        raise ValueError(f"{name!r} differs from the manifest in type or shape")
