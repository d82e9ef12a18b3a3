"""Checkpoints in Hugging Face form, written back from checkpoints, GGUF files and exported directories."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf_files import write_gguf
from models import GOLDEN, hf_config, hf_tensors, oracle, write_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ouro_edge
from ouro_edge.arch.config import from_hf
from ouro_edge.arch.json_object import read_json_object
from ouro_edge.arch.weights import tensor_shapes
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate
from ouro_edge.errors import CheckpointError, ExportError, RequestError
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.export.tensor_names import Part, parts_of, published_name

NANBEIGE = GOLDEN.parent / "nanbeige-tiny"
IDS = [5, 17, 33, 2, 60]


def in_type(path: Path, dtype: type, **changes) -> Path:
    """A random checkpoint whose tensors are stored in one type."""
    path.mkdir(parents=True)
    config = hf_config(**changes, torch_dtype=np.dtype(dtype).name)
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: values.astype(dtype) for name, values in hf_tensors(config).items()}, path / "model.safetensors")
    return path


def assert_same_bits(first: Path, second: Path) -> None:
    """Same tensor names, types and bits."""
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype and values.shape == two[name].shape, name
        assert values.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize("source", [GOLDEN, NANBEIGE])
def test_the_golden_checkpoints_come_back_bit_for_bit(source, tmp_path):
    ouro_edge.export(source, tmp_path / "out", format="hf")
    assert_same_bits(source, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (source / "config.json").read_bytes()
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"  # without it transformers refuses the file


@pytest.mark.parametrize("model_type", ["ouro", "llama"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_comes_back_bit_for_bit(model_type, dtype, tmp_path):
    source = in_type(tmp_path / "in", dtype, model_type=model_type, tie_word_embeddings=True)
    ouro_edge.export(source, tmp_path / "out", format="hf")
    assert_same_bits(source, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("source", [GOLDEN, NANBEIGE])
def test_an_exported_directory_in_float32_comes_back_bit_for_bit(source, bundle_of, tmp_path):
    ouro_edge.export(bundle_of(source), tmp_path / "out", format="hf")
    assert_same_bits(source, tmp_path / "out")


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_a_gguf_in_floats_comes_back_in_its_own_types(precision, tmp_path):
    ouro_edge.export(GOLDEN, tmp_path / "m.gguf", precision=precision)
    ouro_edge.export(tmp_path / "m.gguf", tmp_path / "out", format="hf")
    original, written = load_file(GOLDEN / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert original.keys() == written.keys()
    for name, values in original.items():
        matrix = precision == "f16" and values.ndim == 2 and "early_exit_gate" not in name
        expected = values.astype(np.float16) if matrix else values
        assert written[name].dtype == expected.dtype and written[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("model_type", ["ouro", "llama"])
def test_quantised_weights_are_written_as_the_numbers_that_they_stand_for(model_type, precision, bundle_of, tmp_path):
    source = write_checkpoint(tmp_path / "in", model_type=model_type)
    bundle = open_bundle(bundle_of(source, precision, block_size=16))
    ouro_edge.export(bundle.path, tmp_path / "out", format="hf")
    weights = open_checkpoint(tmp_path / "out").weights
    for name, fused in (("embedding", "embedding"), ("layers.1.o_proj", "layers.1.o_proj"), ("norm", "norm")):
        assert np.array_equal(weights[name], bundle.values(fused))
    qkv = np.concatenate([weights[f"layers.0.{part}_proj"] for part in "qkv"])
    assert np.array_equal(qkv, bundle.values("layers.0.qkv_proj"))
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"


def test_logits_are_equal_when_it_is_exported_again(bundle_of, tmp_path):
    first = bundle_of(GOLDEN)
    ouro_edge.export(first, tmp_path / "hf", format="hf")
    ouro_edge.export(tmp_path / "hf", tmp_path / "again", precision="fp32", calibration=None)
    with ouro_edge.load(first) as one, ouro_edge.load(tmp_path / "again") as two:
        assert np.array_equal(one.forward(IDS).logits, two.forward(IDS).logits)
    assert np.array_equal(oracle(GOLDEN, IDS)[0], oracle(tmp_path / "hf", IDS)[0])


@pytest.mark.parametrize("model_type", ["ouro", "nanbeige", "hrm_text", "llama"])
def test_published_names_are_the_inverse_of_canonical_ones(model_type):
    golden = {"nanbeige": NANBEIGE, "hrm_text": GOLDEN.parent / "hrm-tiny"}.get(model_type)
    config = from_hf(hf_config(model_type=model_type) if golden is None else read_json_object(golden / "config.json"))
    names = {name: published_name(name, config) for name in tensor_shapes(config)}
    assert len(set(names.values())) == len(names)
    assert all(parts_of(published, config) == [Part(name)] for name, published in names.items())
    assert all(published.startswith(("model.", "lm_head.")) for published in names.values())


def test_a_fitted_gate_and_its_threshold_replace_the_original(bundle_of, tmp_path):
    bundle = shutil.copytree(bundle_of(GOLDEN), tmp_path / "bundle")
    gate = FittedGate(np.linspace(-1, 1, 64, dtype=np.float32), 0.25, 0.625)
    write_gate(open_bundle(bundle), gate)
    ouro_edge.export(bundle, tmp_path / "m.gguf")
    for number, source in enumerate((bundle, tmp_path / "m.gguf")):
        out = tmp_path / f"out{number}"
        ouro_edge.export(source, out, format="hf")
        written = load_file(out / "model.safetensors")
        assert np.array_equal(written["model.early_exit_gate.weight"], gate.weight[None])
        assert np.array_equal(written["model.early_exit_gate.bias"], np.float32([0.25]))
        assert json.loads((out / "config.json").read_text())["early_exit_threshold"] == 0.625
    ouro_edge.export(tmp_path / "out0", tmp_path / "again", precision="fp32", calibration=None)
    with ouro_edge.load(bundle) as one, ouro_edge.load(tmp_path / "again") as two:
        rule = ouro_edge.ExitThreshold(0.625)
        first, second = (m.forward(IDS, exit=rule) for m in (one, two))
        assert np.array_equal(first.depth, second.depth) and np.array_equal(first.logits, second.logits)
        assert two.config.exit_threshold == 0.625


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_a_dtype_is_for_all_tensors(dtype, kind, tmp_path):
    ouro_edge.export(GOLDEN, tmp_path / "out", format="hf", dtype=dtype)
    original, written = load_file(GOLDEN / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for name, values in original.items():
        assert written[name].dtype == kind and written[name].tobytes() == values.astype(kind).tobytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == dtype


def test_shards_have_an_index_and_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("ouro_edge.export.hf.writer.MAX_SHARD_BYTES", 200_000)
    ouro_edge.export(GOLDEN, tmp_path / "out", format="hf")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert 4 <= len(files) <= 6
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    original = load_file(GOLDEN / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in original.values())
    for name, values in original.items():
        with safe_open(tmp_path / "out" / index["weight_map"][name], "np") as file:
            assert np.array_equal(file.get_tensor(name), values)
    assert np.array_equal(oracle(GOLDEN, IDS)[0], oracle(tmp_path / "out", IDS)[0])


def test_the_result_does_not_depend_on_the_pieces(tmp_path, monkeypatch):
    ouro_edge.export(GOLDEN, tmp_path / "whole", format="hf")
    monkeypatch.setattr("ouro_edge.export.hf.writer.PIECE_VALUES", 100)
    ouro_edge.export(GOLDEN, tmp_path / "pieces", format="hf")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "pieces/model.safetensors").read_bytes()


def test_references_to_code_name_the_repository_or_a_note_says_what_is_missing(tmp_path):
    config = json.loads((NANBEIGE / "config.json").read_text())
    result = ouro_edge.export(NANBEIGE, tmp_path / "local", format="hf")
    assert result.notes == (
        "transformers needs the model's published code in the same directory, which is not part of the export: "
        "configuration_nanbeige.py, modeling_nanbeige.py",
    )
    source = {"repo_id": "owner/name", "revision": None}
    from ouro_edge.export.exporter import export_bundle
    from ouro_edge.quant import preset

    export_bundle(open_checkpoint(NANBEIGE), tmp_path / "bundle", preset("fp32"), source=source)
    assert ouro_edge.export(tmp_path / "bundle", tmp_path / "hub", format="hf").notes == ()
    written = json.loads((tmp_path / "hub/config.json").read_text())
    assert written["auto_map"] == {key: f"owner/name--{value}" for key, value in config["auto_map"].items()}
    assert {**written, "auto_map": None} == {**config, "auto_map": None}


def test_an_interrupted_export_leaves_nothing_that_opens(tmp_path):
    code = (
        "import os, signal, sys, ouro_edge\n"
        "def kill(done, total, what):\n"
        "    if done > total // 2: os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
        "ouro_edge.export(sys.argv[1], sys.argv[2], format='hf', progress=kill)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(GOLDEN), str(tmp_path / "out")], check=False)
    assert done.returncode != 0
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.") and not (left / "config.json").exists()
    assert (left / "model.safetensors").is_file()


def test_only_what_was_written_here_is_overwritten(tmp_path):
    own, foreign = tmp_path / "own", shutil.copytree(GOLDEN, tmp_path / "foreign")
    ouro_edge.export(GOLDEN, own, format="hf")
    with pytest.raises(ExportError, match="exists and is not empty"):
        ouro_edge.export(GOLDEN, own, format="hf")
    ouro_edge.export(NANBEIGE, own, format="hf", overwrite=True)
    assert_same_bits(NANBEIGE, own)
    with pytest.raises(ExportError, match="is not an exported model, so it is not overwritten"):
        ouro_edge.export(NANBEIGE, foreign, format="hf", overwrite=True)
    (own / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds 'notes.txt', which is not part of the model there"):
        ouro_edge.export(GOLDEN, own, format="hf", overwrite=True)
    with pytest.raises(ExportError, match=r"is inside .*, which --overwrite would delete"):
        ouro_edge.export(own, own, format="hf", overwrite=True)
    assert_same_bits(NANBEIGE, own)


def test_what_cannot_be_written_is_one_line(bundle_of, tmp_path):
    out = tmp_path / "out"
    for options, message in (
        ({"precision": "int4"}, "a checkpoint takes no precision"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float32, float16, bfloat16"),
        ({"calibration": ouro_edge.Calibration("text")}, "a checkpoint takes no calibration text"),
    ):
        with pytest.raises(RequestError, match=message):
            ouro_edge.export(GOLDEN, out, format="hf", **options)
    with pytest.raises(RequestError, match="dtype is for checkpoints"):
        ouro_edge.export(GOLDEN, out, dtype="float16")
    with pytest.raises(RequestError, match="keeps its gate"):
        ouro_edge.export(bundle_of(GOLDEN), out, format="hf", gate_from=GOLDEN)
    large = in_type(tmp_path / "large", np.float32, rms_norm_eps=1e-5)
    tensors = load_file(large / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, large / "model.safetensors")
    with pytest.raises(ExportError, match="norm holds values beyond float16; choose another dtype"):
        ouro_edge.export(large, out, format="hf", dtype="float16")
    assert not out.exists()


def test_a_gguf_without_a_gate_needs_one(tmp_path):
    golden = open_checkpoint(GOLDEN)
    file = write_gguf(tmp_path / "gateless.gguf", golden.config, dict(golden.weights), gate=False)
    with pytest.raises(CheckpointError, match=r"has no exit gate.*--gate-from"):
        ouro_edge.export(file, tmp_path / "out", format="hf")
    ouro_edge.export(file, tmp_path / "out", format="hf", gate_from=GOLDEN)
    assert_same_bits(GOLDEN, tmp_path / "out")
