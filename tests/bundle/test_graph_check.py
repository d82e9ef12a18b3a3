"""A graph that the exporter would not write is refused before onnxruntime opens it, although its checksum is right."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import write_checkpoint
from onnx import TensorProto, helper, numpy_helper

import ouro_edge
from ouro_edge.bundle.directory import BLOCK_FILES, HEAD_FILE, MANIFEST_FILE, open_bundle
from ouro_edge.errors import BundleError
from ouro_edge.runtime.backend import onnx_backend

COMPAT = Path(__file__).parents[1] / "compat" / "v0.1" / "bundle"


@pytest.fixture
def bundle(bundle_of, tmp_path):
    return shutil.copytree(bundle_of(precision="int4"), tmp_path / "model")


def replace(bundle, name, content):
    """Put other bytes into a file, with a record in the manifest that agrees."""
    (bundle / name).write_bytes(content)
    data = json.loads((bundle / MANIFEST_FILE).read_text())
    data["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / MANIFEST_FILE).write_text(json.dumps(data))


def refused(bundle, says, monkeypatch, capfd):
    """Loading fails in one line on no stream, and onnxruntime does not see a graph."""
    monkeypatch.setattr(onnx_backend, "open_session", lambda *_, **__: pytest.fail("onnxruntime opened the graph"))
    with pytest.raises(BundleError, match=says) as caught:
        ouro_edge.load(bundle, kv="fp32")
    assert "\n" not in str(caught.value) and "export again" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def another_operator(model):
    model.graph.node[-1].op_type = "Neg"


def another_domain(model):
    model.graph.node[0].domain = "ai.onnx.contrib"


def another_attribute(model):
    model.graph.node[0].attribute.append(helper.make_attribute("stash_type", 1))


def a_subgraph(model):
    branch = helper.make_graph([], "branch", [], [])
    node = helper.make_node("If", ["total_length"], ["x"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def a_subgraph_in_a_known_operator(model):
    model.graph.node[0].attribute.append(helper.make_attribute("axis", helper.make_graph([], "branch", [], [])))


def a_function(model):
    body = [helper.make_node("Neg", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("com.microsoft", "QuickGelu", ["x"], ["y"], body, opsets))


def an_older_operator_set(model):
    model.opset_import[0].version = 20


def place(model, key, value):
    entries = model.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == key).value = value


def an_unlisted_array(model):
    model.graph.initializer[0].name = "layers.9.attn_norm.values"


def another_shape(model):
    model.graph.initializer[0].dims[0] = 32


def weights_in_the_graph(model):
    one = model.graph.initializer[0]
    one.CopyFrom(numpy_helper.from_array(np.zeros(tuple(one.dims), np.float32), one.name))


def other_zero_points(model):
    one = next(one for one in model.graph.initializer if one.name.startswith("middle_points"))
    one.CopyFrom(numpy_helper.from_array(np.full(tuple(one.dims), 0x78, np.uint8), one.name))


def sparse_weights(model):
    one = numpy_helper.from_array(np.zeros(1, np.float32), "layers.0.attn_norm.values")
    where = numpy_helper.from_array(np.zeros(1, np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(one, where, [64]))


def another_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def an_output_less(model):
    del model.graph.output[-1]


def an_output_twice(model):
    model.graph.output.append(model.graph.output[0])


def another_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def another_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (another_operator, "the operator Neg"),
        (another_domain, r"the operator ai\.onnx\.contrib\.SimplifiedLayerNormalization"),
        (another_attribute, "'stash_type' of the operator SimplifiedLayerNormalization"),
        (a_subgraph, "field 6 of AttributeProto"),
        (a_subgraph_in_a_known_operator, "field 6 of AttributeProto"),
        (a_function, "field 25 of ModelProto"),
        (an_older_operator_set, "operator sets .*20"),
        (lambda m: place(m, "location", "../../secret"), r"'layers\.0\.attn_norm\.values' at .*secret"),
        (lambda m: place(m, "location", "/etc/passwd"), "/etc/passwd"),
        (lambda m: place(m, "offset", "0"), "'offset': '0'"),
        (lambda m: place(m, "length", "1"), "'length': '1'"),
        (lambda m: m.graph.initializer[0].external_data.add(key="checksum", value="1"), "checksum"),
        (an_unlisted_array, "which the manifest does not list"),
        (another_shape, "differs from the manifest"),
        (weights_in_the_graph, "neither whole numbers, ones nor zero points of 8"),
        (other_zero_points, "neither whole numbers, ones nor zero points of 8"),
        (sparse_weights, "field 15 of GraphProto"),
        (another_input, "its input 'more'"),
        (an_output_less, "no output 'exit_logit'"),
        (an_output_twice, "its output '.*'"),
        (another_type, "its input 'hidden'"),
        (another_size, "its input 'hidden'"),
    ],
)
def test_a_graph_that_is_never_written_is_refused(bundle, change, says, monkeypatch, capfd):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    change(model)
    replace(bundle, "model.onnx", model.SerializeToString())
    refused(bundle, says, monkeypatch, capfd)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"not a graph", "unknown|cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: b"", r"operator sets \{\}"),
        (lambda data: data + helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), "twice"),
        (lambda data: data + b"\x08" + b"\xff" * 11, "64 bits"),
    ],
)
def test_bytes_that_parsers_may_read_differently_are_refused(bundle, change, says, monkeypatch, capfd):
    replace(bundle, "model.onnx", change((bundle / "model.onnx").read_bytes()))
    refused(bundle, says, monkeypatch, capfd)


def test_verification_looks_at_every_graph(bundle):
    file = bundle / BLOCK_FILES["int8"]
    model = onnx.load(file, load_external_data=False)
    another_operator(model)
    replace(bundle, file.name, model.SerializeToString())
    with pytest.raises(BundleError, match="the operator Neg"):
        list(ouro_edge.verify(bundle))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(
    "changes", [{}, {"model_type": "llama"}, {"head_dim": 12, "hidden_size": 48}, {"tie_word_embeddings": True}]
)
def test_every_graph_that_is_written_is_accepted(bundle_of, tmp_path, precision, changes):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **changes)
    bundle = open_bundle(bundle_of(checkpoint, precision, **({} if precision == "fp32" else {"block_size": 16})))
    for kv in BLOCK_FILES:
        assert bundle.block_graph(kv).source.name == BLOCK_FILES[kv]
    assert bundle.head_graph().source.name == HEAD_FILE


def test_graphs_of_version_0_1_are_accepted():
    bundle = open_bundle(COMPAT)
    assert [bundle.block_graph(kv).source.name for kv in BLOCK_FILES] == list(BLOCK_FILES.values())
    assert bundle.head_graph().source.name == HEAD_FILE
