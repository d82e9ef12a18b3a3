"""Zero points of 8 for symmetric 4-bit weights: the same products on x86-64, and rounding in blocks on ARM64."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import Bundles
from models import hf_config

from ouro_edge.arch.config import from_hf
from ouro_edge.bundle.bundle import MIDDLE_POINTS, GraphFile, GraphInMemory
from ouro_edge.bundle.directory import BLOCK_FILES, open_bundle
from ouro_edge.bundle.tensors import ArraySpec, TensorSpec
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.gguf.write_file import checkpoint_to_gguf
from ouro_edge.export.graphs.builder import GraphBuilder
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import Scheme, dequantize, quantize
from ouro_edge.runtime.backend.session import open_session, rounds_whole_rows

OLD = Path(__file__).parents[1] / "compat" / "v0.1" / "bundle"  # exported without zero points
WIDE = {"hidden_size": 256, "intermediate_size": 512}


class OldGraph(GraphInMemory):
    """A graph as versions before the zero points built it."""

    lacks_zero_points = True


on_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="kernels of x86-64")


def without_zero_points(graph: onnx.GraphProto) -> int:
    """Remove the zero points that the builder has added; how many products had them."""
    found = 0
    for node in graph.node:
        if len(node.input) == 4 and node.input[3].startswith(MIDDLE_POINTS):
            del node.input[3]
            found += 1
    kept = [tensor for tensor in graph.initializer if not tensor.name.startswith(MIDDLE_POINTS)]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return found


@on_x86
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_directories_compute_the_same_bits_on_x86(
    checkpoint_of: Callable[..., Path], bundle_of: Bundles, tmp_path: Path, block_size: int
) -> None:
    made = bundle_of(checkpoint_of(**WIDE), "int4", block_size=block_size)
    inputs = np.random.default_rng(0).standard_normal((1, 9, 256)).astype(np.float32)
    for kv in ("fp32", "int8"):
        stored = open_bundle(made).block_graph(kv)
        model = onnx.load(stored.source, load_external_data=False)
        assert without_zero_points(model.graph) == 2 * 4
        plain = tmp_path / BLOCK_FILES[kv]
        onnx.save(model, plain)
        shutil.copy(made / "model.onnx.data", tmp_path)
        sessions = [open_session(GraphFile(path, stored.data), 1) for path in (stored.source, plain)]
        for rows in (1, 2, 9):
            feed = _feed(sessions[0], inputs[:, :rows])
            expected, found = (session.run(["hidden_out"], feed)[0] for session in sessions)
            np.testing.assert_array_equal(found, expected)


def _feed(session, hidden: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the block graph for rows at position 0, over empty caches."""
    kinds = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(int32)": np.int32}
    sizes = {"batch": 1, "capacity": 16, "positions": 16, "length": hidden.shape[1]}
    feed = {
        entry.name: np.ones([sizes.get(size, size) for size in entry.shape], kinds[entry.type])
        for entry in session.get_inputs()
    }
    return feed | {
        "hidden": hidden,
        "seqlens_k": np.array([hidden.shape[1] - 1], np.int32),
        "total_length": np.array(hidden.shape[1], np.int32),
    }


@on_x86
def test_gguf_files_compute_the_same_bits_on_x86(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(checkpoint_of(**WIDE)), tmp_path / "x.gguf", "q4_0")
    graph = open_gguf_bundle(out).block_graph("fp32")
    model = onnx.load_from_string(graph.model)
    assert without_zero_points(model.graph) == 2 * 4
    plain = OldGraph(graph.source, model.SerializeToString(), graph.arrays)
    hidden = np.random.default_rng(0).standard_normal((1, 5, 256)).astype(np.float32)
    sessions = [open_session(graph, 1), open_session(plain, 1)]
    expected, found = (session.run(["hidden_out"], _feed(sessions[0], hidden))[0] for session in sessions)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("path", "precision", "options", "lacks"),
    [
        (OLD, "", {}, True),
        (None, "int4", {}, False),
        (None, "int4", {"symmetric": False}, False),
        (None, "int8", {"symmetric": True}, False),
        (None, "fp32", {}, False),
    ],
)
def test_which_files_lack_zero_points(bundle_of: Bundles, path, precision, options, lacks) -> None:
    bundle = open_bundle(path or bundle_of(precision=precision, **options))
    assert bundle.block_graph("fp32").lacks_zero_points is lacks


@pytest.mark.parametrize(
    ("machine", "version", "lacks", "expected"),
    [
        ("aarch64", "1.32.0", False, False),
        ("arm64", "1.32.0", True, True),
        ("ARM64", "1.31.1", False, True),
        ("aarch64", "2.0.0", False, False),
        ("x86_64", "1.28.0", True, False),
        ("AMD64", "1.32.0", True, False),
    ],
)
def test_when_kleidiai_is_disabled(machine: str, version: str, lacks: bool, expected: bool) -> None:
    assert rounds_whole_rows(SimpleNamespace(lacks_zero_points=lacks), machine, version) is expected


def product(scheme: Scheme, weights: np.ndarray, explicit: bool = True) -> tuple[GraphInMemory, np.ndarray]:
    """A graph of one product as exports have it, and the stored weights; not `explicit`: without zero points of 8."""
    stored = quantize(weights, scheme)
    tensor = TensorSpec(weights.shape, scheme, {n: ArraySpec(*a) for n, a in scheme.parts(weights.shape).items()})
    builder = GraphBuilder(from_hf(hf_config()), {"head": tensor}, rank=2)
    builder.inputs("rows", "float32", ["length", weights.shape[1]])
    builder.outputs("out", "float32", ["length", weights.shape[0]])
    builder.linear("rows", "head", "out")
    model = builder.model("product")
    if not explicit:
        assert without_zero_points(model.graph) == 1
    arrays = {f"head.{name}": np.ascontiguousarray(getattr(stored, name)) for name in scheme.parts(weights.shape)}
    return GraphInMemory(Path("product"), model.SerializeToString(), arrays), dequantize(stored)


@pytest.mark.parametrize("rows", [1, 24])
@pytest.mark.parametrize("scheme", [
    Scheme(4, 32), Scheme(4, 64), Scheme(4, 128), Scheme(4, 32, False), Scheme(4, 128, False), Scheme(8, 32),
    Scheme(8, 32, False), Scheme(8, 128),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("explicit", [True, False])
def test_activations_are_rounded_in_blocks(scheme: Scheme, rows: int, explicit: bool) -> None:
    """Against float32, with outliers as trained models have: a scale for a whole row would have to include them."""
    if not explicit and (scheme.bits != 4 or not scheme.symmetric):
        pytest.skip("has no zero points of 8")
    generator = np.random.default_rng(0)
    weights, x = (generator.standard_normal((n, 2048)).astype(np.float32) for n in (64, rows))
    x[:, [3, 1077]] *= 50
    weights[:, [3, 1077]] /= 50
    graph, stored = product(scheme, weights, explicit)
    if not explicit:
        graph = OldGraph(graph.source, graph.model, graph.arrays)
    found = open_session(graph, 1).run(None, {"rows": x})[0]
    expected = x @ stored.T
    assert np.linalg.norm(found - expected) < 0.07 * np.linalg.norm(expected)
