"""Running a .gguf file as it is: the golden answers, the bundle's own, every number format, and what travels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Bundles
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from models import write_checkpoint

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.weights import block_tensors
from ouro_edge.bundle.directory import BLOCK_FILES, DATA_FILE, open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate
from ouro_edge.bundle.kv_ranges import ranges_shape, read_ranges, write_ranges
from ouro_edge.cli import main
from ouro_edge.errors import BundleError, CheckpointError
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.gguf.own_metadata import own_metadata
from ouro_edge.export.gguf.write_file import bundle_to_gguf, checkpoint_to_gguf
from ouro_edge.export.gguf.writer import QuantizedWeights, write_gguf
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_kv import calibrate
from ouro_edge.runtime.backend.session import open_session

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # rows are whole blocks, so that every matrix is quantised
PROMPT = [5, 17, 80, 3, 44, 9, 61]


def tokens(model: ouro_edge.Model, ids: list[int], threshold: float) -> list[tuple[int, int]]:
    """Greedy continuation as (id, depth)."""
    policy = ouro_edge.ExitThreshold(threshold)
    events = model.generate(ids, max_tokens=24, exit=policy, stop_ids=(), sampler=ouro_edge.Sampler())
    return [(event.id, event.depth) for event in events if isinstance(event, ouro_edge.Token)]


@pytest.fixture(scope="module")
def wide(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of(**WIDE)


@pytest.mark.parametrize("threshold", ["0.3", "0.7", "1.0"])
def test_golden_survives_the_round_trip(tmp_path: Path, bundle_of: Bundles, golden: Any, threshold: str) -> None:
    """Bundle -> GGUF -> run, in float32, gate included: the tokens of the published code."""
    out, _ = bundle_to_gguf(open_bundle(bundle_of()), tmp_path / "x.gguf")
    with ouro_edge.load(out) as model:
        for row in (0, 1):
            found = tokens(model, golden["input_ids"][row, :12].tolist(), float(threshold))
            assert [i for i, _ in found] == golden[f"greedy_threshold_{threshold}_row{row}"].tolist()


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_same_tokens_as_the_bundle(tmp_path: Path, wide: Path, bundle_of: Bundles, precision: str) -> None:
    path = bundle_of(wide, precision, block_size=32, symmetric=True)
    out, _ = bundle_to_gguf(open_bundle(path), tmp_path / "x.gguf")
    with ouro_edge.load(path) as bundle, ouro_edge.load(out) as model:
        np.testing.assert_array_equal(model.forward(PROMPT).logits, bundle.forward(PROMPT).logits)
        for threshold in (0.2, 0.5, 0.8, 1.0):
            assert tokens(model, PROMPT, threshold) == tokens(bundle, PROMPT, threshold)


class Mixed(QuantizedWeights):
    """Stores values in another type than k and the even layers' gate, as the mixes of llama.cpp do."""

    def kind(self, name: str) -> Q:
        return Q.Q8_0 if name.endswith(("v_proj", "0.up_proj")) else super().kind(name)


@pytest.mark.parametrize("kind", [Q.Q4_0, Q.Q4_1, Q.Q8_0, Q.F16, Q.F32], ids=lambda k: k.name)
@pytest.mark.parametrize("source", [QuantizedWeights, Mixed], ids=["uniform", "mixed"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_every_type(
    tmp_path: Path, checkpoint_of: Callable[..., Path], kind: Q, source: type[QuantizedWeights], tied: bool
) -> None:
    """Against the reference on the stored weights: only the rounding of activations to eight bits is between them."""
    checkpoint = open_checkpoint(checkpoint_of(**WIDE, tie_word_embeddings=tied))
    write_gguf(tmp_path / "x.gguf", checkpoint.config, source(checkpoint.weights, kind), kind, {})
    stored = dict(open_checkpoint(tmp_path / "x.gguf").weights)
    stored.setdefault("head", stored["embedding"])
    expected = reference.head(stored, reference.run(checkpoint.config, stored, np.array(PROMPT)).hidden[-1])
    with ouro_edge.load(tmp_path / "x.gguf") as model:
        found = model.forward(PROMPT, exit=ouro_edge.FullDepth()).logits
    close = 1e-4 if kind in (Q.F32, Q.F16) and source is QuantizedWeights else 0.05
    assert np.linalg.norm(found - expected) <= close * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("kind", "exact", "rounded"), [(Q.F16, None, False), (Q.F16, False, True), (Q.Q8_0, None, False)]
)
def test_rounding_to_eight_bits_is_said(tmp_path: Path, wide: Path, kind: Q, exact: bool | None, rounded: bool) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(wide), tmp_path / "x.gguf", kind.name.lower())
    notes = [line for line in open_gguf_bundle(out, exact=exact).notes if "run as" in line]
    assert [line.split(",")[0] for line in notes] == (["15 F16 tensors run as Q8_0"] if rounded else [])
    assert all(line.endswith("--gguf-weights exact") for line in notes)


def test_nothing_is_written(tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    out, _ = checkpoint_to_gguf(open_checkpoint(wide), tmp_path / "x.gguf", "q4_0")
    with ouro_edge.load(out, context=64) as model:
        assert model.config.max_positions == 64
        assert len(tokens(model, PROMPT, 1.0)) == 24
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_onnxruntime_keeps_a_copy(wide: Path, bundle_of: Bundles, tmp_path: Path) -> None:
    """What the memory of a loaded file rests on: arrays may go once a session is open."""
    out, _ = checkpoint_to_gguf(open_checkpoint(wide), tmp_path / "x.gguf", "f32")
    graph = open_gguf_bundle(out).head_graph()
    session = open_session(graph, 1)
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    before = session.run(None, {"hidden": rows})[0]
    for array in graph.arrays.values():
        array[...] = 0
    np.testing.assert_array_equal(session.run(None, {"hidden": rows})[0], before)


@pytest.fixture(scope="module")
def measured(wide: Path, bundle_of: Bundles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with a fitted gate and KV ranges, and the .gguf file made of it."""
    root = tmp_path_factory.mktemp("measured")
    shutil.copytree(bundle_of(wide, "int4", block_size=32), root / "bundle")
    bundle = open_bundle(root / "bundle")
    calibrate(bundle, None)
    rng = np.random.default_rng(3)
    write_gate(bundle, FittedGate(rng.standard_normal(64).astype(np.float32), 0.25, 0.6))
    bundle_to_gguf(bundle, root / "x.gguf")
    return root / "bundle", root / "x.gguf"


def test_gate_and_ranges_travel(measured: tuple[Path, Path]) -> None:
    path, file = measured
    bundle, found = open_bundle(path), open_gguf_bundle(file)
    gate, original = found.fitted_gate(), bundle.fitted_gate()
    assert gate is not None and original is not None
    np.testing.assert_array_equal(gate.weight, original.weight)
    assert (gate.bias, gate.threshold) == (original.bias, 0.6)
    assert bundle.has_kv_ranges and found.has_kv_ranges
    np.testing.assert_array_equal(read_ranges(found), read_ranges(bundle))
    with ouro_edge.load(path, kv="int8") as one, ouro_edge.load(file, kv="int8") as other:
        assert other.kv == "int8" and other.default_exit() == ouro_edge.ExitThreshold(0.6)
        assert tokens(one, PROMPT, 0.6) == tokens(other, PROMPT, 0.6)


def test_a_file_without_ranges_says_what_to_do(tmp_path: Path, wide: Path) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(wide), tmp_path / "x.gguf", "q8_0")
    bundle = open_gguf_bundle(out)
    assert (bundle.has_kv_ranges, bundle.kv_ranges(), bundle.fitted_gate()) == (False, None, None)
    with pytest.raises(BundleError, match="not calibrated for a quantised KV cache: export it to a directory"):
        ouro_edge.load(out, kv="int8")


@pytest.mark.parametrize("damage", [np.nan, -1])
def test_ranges_that_make_no_sense_matter_for_a_quantised_cache_only(tmp_path: Path, wide: Path, damage: float) -> None:
    checkpoint = open_checkpoint(wide)
    ranges = np.full(ranges_shape(checkpoint.config), damage, np.float32)
    tensors = QuantizedWeights(checkpoint.weights, Q.F32)
    write_gguf(tmp_path / "x.gguf", checkpoint.config, tensors, Q.F32, own_metadata(None, ranges))
    assert ouro_edge.load(tmp_path / "x.gguf", kv="fp32").kv == "fp32"
    with pytest.raises(BundleError, match=r"ouro_edge\.kv_ranges in .*x\.gguf cannot be used, expected finite numbers"):
        ouro_edge.load(tmp_path / "x.gguf", kv="int8")


def test_the_same_answers_as_the_directory(measured: tuple[Path, Path]) -> None:
    """Both implementations of the interface, over the same weights."""
    bundle, found = open_bundle(measured[0]), open_gguf_bundle(measured[1])
    assert found.name == bundle.name
    assert found.config == replace(bundle.config, eos_token_ids=(0, 2))  # GGUF stores the stop ids as ends
    assert (bundle.directory, bundle.weights_file) == (measured[0], measured[0] / DATA_FILE)
    assert (found.directory, found.weights_file) == (None, measured[1])
    assert len(found.weights_id) == len(bundle.weights_id) == 64
    for name in block_tensors(bundle.tensors):
        rows = found.tensors[name].shape[0]
        assert found.tensors[name].shape == bundle.tensors[name].shape
        for model in (bundle, found):
            part = model.rows(name, rows // 3, rows)
            np.testing.assert_array_equal(part, model.values(name)[rows // 3 :], err_msg=name)
        np.testing.assert_allclose(found.values(name), bundle.values(name), atol=2e-3, err_msg=name)
    ids = np.array([3, 0, 95, 3])
    np.testing.assert_allclose(found.embedding()(ids), bundle.embedding()(ids), atol=2e-3)
    assert found.head_graph().weights_bytes == found.tensors["head"].size
    assert bundle.head_graph().weights_bytes == bundle.weights_file.stat().st_size


def test_results_are_not_written_into_a_file(measured: tuple[Path, Path]) -> None:
    found, before = open_gguf_bundle(measured[1]), measured[1].read_bytes()
    gate, ranges = found.fitted_gate(), found.kv_ranges()
    assert gate is not None and ranges is not None
    for write in (lambda: write_gate(found, gate), lambda: write_ranges(found, ranges, {})):
        with pytest.raises(BundleError, match=r"x\.gguf is a single file, which cannot be extended: export it"):
            write()
    assert measured[1].read_bytes() == before


def test_repacking_reports_progress(measured: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    ouro_edge.load(measured[1], kv="fp32", progress=lambda *at: seen.append(at)).close()
    blocks = len(open_gguf_bundle(measured[1]).tensors) - 1
    assert [(done, total) for done, total, _ in seen] == [(i + 1, blocks) for i in range(blocks)] + [(1, 1)]
    assert seen[-1][2] == "head"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ouro_edge.kv_ranges": np.ones(7, np.float32)}, "ouro_edge.kv_ranges is an array of 7; expected"),
        ({"ouro_edge.kv_ranges": "x"}, "ouro_edge.kv_ranges is 'x'; expected"),
        ({"ouro_edge.fitted_gate.weight": np.ones(63, np.float32)}, "an array of 63; expected 64"),
        ({"ouro_edge.fitted_gate.bias": "x"}, "ouro_edge.fitted_gate.bias is 'x'"),
        ({"ouro_edge.fitted_gate.threshold": np.float32(2)}, "threshold 2.0; expected 0 to 1"),
        ({"ouro_edge.fitted_gate.bias": np.float32(np.nan)}, "64 finite weights and a bias"),
        ({"tokenizer.huggingface.json": "{"}, "tokenizer.huggingface.json cannot be read"),
    ],
)
def test_measured_things_that_lie(tmp_path: Path, wide: Path, change: dict[str, Any], says: str) -> None:
    checkpoint = open_checkpoint(wide)
    good = {"ouro_edge.fitted_gate.weight": np.ones(64, np.float32), "ouro_edge.fitted_gate.bias": np.float32(1)}
    tensors = QuantizedWeights(checkpoint.weights, Q.F32)
    write_gguf(tmp_path / "x.gguf", checkpoint.config, tensors, Q.F32, good | change)
    with pytest.raises((CheckpointError, BundleError)) as caught:
        ouro_edge.load(tmp_path / "x.gguf")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["layers.0.q_proj", "embedding"])
def test_a_scale_that_is_not_finite(tmp_path: Path, wide: Path, name: str) -> None:
    checkpoint = open_checkpoint(wide)

    class Damaged(QuantizedWeights):
        def rows(self, tensor: str, start: int, stop: int) -> Any:
            stored = quantize(checkpoint.weights.rows(tensor, start, stop), self.kind(tensor))
            if tensor == name:
                stored[5, :2] = (0x00, 0x7E)  # float16 NaN
            return stored

    write_gguf(tmp_path / "x.gguf", checkpoint.config, Damaged(checkpoint.weights, Q.Q4_0), Q.Q4_0, {})
    with (
        pytest.raises(CheckpointError, match="holds values that are not finite"),
        ouro_edge.load(tmp_path / "x.gguf") as model,
    ):
        model.forward([5])


def test_a_gate_from_the_original(tmp_path: Path, wide: Path) -> None:
    """A community file has no gate; export puts the checkpoint's back, into a file or into a bundle."""
    checkpoint = open_checkpoint(wide)
    config = type(checkpoint.config).from_dict(checkpoint.config.to_dict() | {"has_gate": False})
    community = tmp_path / "community.gguf"
    write_gguf(community, config, QuantizedWeights(checkpoint.weights, Q.F32), Q.F32, {})

    def ouro(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    said = json.loads(ouro("inspect", community, "--json").stdout)
    assert "--gate-from" in " ".join(said["notes"]) and said["exit gate"].startswith("none")
    file, bundle = tmp_path / "gated.gguf", tmp_path / "bundle"
    for out in (file, bundle):
        done = ouro("export", community, out, "-p", "fp32", "--gate-from", wide, "--no-calibration")
        assert done.exit_code == 0, done.output
        with ouro_edge.load(out) as model, ouro_edge.load(bundle_path(tmp_path, wide)) as original:
            assert tokens(model, PROMPT, 0.5) == tokens(original, PROMPT, 0.5)
    other = write_checkpoint(tmp_path / "other", **{**WIDE, "num_hidden_layers": 3})
    for arguments, says in (
        ((file, tmp_path / "no.gguf", "--gate-from", wide), "already has an exit gate"),
        ((community, tmp_path / "no.gguf", "--gate-from", community), "has no exit gate"),
        ((community, tmp_path / "no.gguf", "--gate-from", other), "num_layers 3"),
        ((bundle, tmp_path / "no.gguf", "-p", "q4_0"), "keeps its number format and gate"),
        ((community, tmp_path / "no.gguf", "--block-size", "32"), "takes no block size"),
        ((wide, tmp_path / "no.gguf", "--format", "onnx"), "is the name of a file: choose another name"),
    ):
        done = ouro("export", *arguments)
        assert done.exit_code == 1 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "no.gguf").exists()


def bundle_path(root: Path, checkpoint: Path) -> Path:
    """The checkpoint's own bundle."""
    out = root / "original"
    if not out.exists():
        CliRunner().invoke(main, ["export", str(checkpoint), str(out), "-p", "fp32", "--no-calibration"])
    return out


def test_a_graph_for_every_cache(measured: tuple[Path, Path]) -> None:
    bundle = open_gguf_bundle(measured[1])
    for kv in BLOCK_FILES:
        assert "layers.0.qkv_proj.packed" in bundle.block_graph(kv).arrays
