"""Verify passes honest models of odd sizes, fails others, and asks each loop once."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from models import write_checkpoint
from safetensors.numpy import load_file, save_file

from ouro_edge.bundle.directory import open_bundle, sha256
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate
from ouro_edge.cli import main
from ouro_edge.evaluation.verify import verify
from ouro_edge.export.exporter import export_bundle
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import preset
from ouro_edge.runtime.sequence.sequence import TokenSequence


def exported(checkpoint, out, precision):
    export_bundle(open_checkpoint(checkpoint), out, preset(precision))
    return out


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_narrow_model_is_in_tolerance(tmp_path, precision):
    odd = {"hidden_size": 20, "head_dim": 6, "num_key_value_heads": 1, "intermediate_size": 13}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", seed=3, **odd)
    assert all(check.passed for check in verify(exported(checkpoint, tmp_path / "model", precision)))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_of_which_a_kernel_would_see_the_nibbles_swapped_fail(bundle_of, tmp_path, monkeypatch, precision):
    """The reference reads what we unpack; swap neighbours in that, as a packing error would."""
    from ouro_edge.evaluation.stored_weights import StoredWeights

    read = StoredWeights.__getitem__

    def swapped(self, name):
        values = read(self, name)
        return values.reshape(len(values), -1, 2)[:, :, ::-1].reshape(values.shape) if "_proj" in name else values

    monkeypatch.setattr(StoredWeights, "__getitem__", swapped)
    checks = list(verify(bundle_of(precision=precision)))
    assert not any(check.passed for check in checks if check.name.startswith("logits"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_error_smaller_than_the_rounding_of_activations_is_seen(bundle_of, monkeypatch, precision):
    from ouro_edge.evaluation.stored_weights import StoredWeights

    read = StoredWeights.__getitem__
    monkeypatch.setattr(
        StoredWeights, "__getitem__", lambda self, name: read(self, name) * (1.01 if "0.gate_proj" in name else 1)
    )
    checks = [check for check in verify(bundle_of(precision=precision)) if check.name.startswith("logits")]
    assert {check.name.rsplit(", ")[1] for check in checks if not check.passed} == {"float activations"}


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_zeros_equal_zeros(tmp_path, name, precision):
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, checkpoint / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks = list(verify(exported(checkpoint, tmp_path / "model", precision)))
    assert all(check.passed for check in checks)


def test_what_is_not_finite_fails_without_a_warning(bundle_of, tmp_path):
    model = shutil.copytree(bundle_of(precision="int8"), tmp_path / "model")
    file = model / "ouro_edge.json"
    data = json.loads(file.read_text())
    scales = data["tensors"]["layers.0.qkv_proj"]["parts"]["scales"]
    values = np.memmap(model / "model.onnx.data", "<f4", "r+", scales["offset"], tuple(scales["shape"]))
    values[:] = np.nan
    values.flush()
    data["files"]["model.onnx.data"]["sha256"] = sha256(model / "model.onnx.data")
    file.write_text(json.dumps(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks = list(verify(model))
    assert not any(check.passed for check in checks if check.name.startswith("logits"))


def test_a_fitted_gate_is_no_error_of_arithmetic(bundle_of, tmp_path):
    bundle = open_bundle(shutil.copytree(bundle_of(), tmp_path / "model"))
    write_gate(bundle, FittedGate(np.ones(bundle.config.hidden_size, np.float32), 9.0))
    assert all(check.passed for check in verify(bundle.path))


def test_scarce_memory_does_not_change_the_kv_that_is_verified(bundle_of, monkeypatch):
    monkeypatch.setattr("ouro_edge.runtime.backend.kv_choice.available_memory", lambda: 1)
    monkeypatch.setattr("ouro_edge.bundle.directory.DirectoryBundle.has_kv_ranges", True)
    assert all(check.passed for check in verify(bundle_of()))


def test_each_position_goes_through_each_loop_once(bundle_of, monkeypatch):
    made = []
    start = TokenSequence.__init__

    def counting(self, *arguments):
        start(self, *arguments)
        made.append(self)

    monkeypatch.setattr(TokenSequence, "__init__", counting)
    list(verify(bundle_of(), tokens=5))
    assert sum(sequence.work.rows for sequence in made) == 5 * 4


def test_a_moved_embedding_fails(bundle_of, tmp_path):
    """Reference and runtime would gather the same wrong rows."""
    model = shutil.copytree(bundle_of(precision="int8"), tmp_path / "model")
    file = model / "ouro_edge.json"
    for distance in (1, 64, 4096):
        data = json.loads((bundle_of(precision="int8") / "ouro_edge.json").read_text())
        data["tensors"]["embedding"]["parts"]["packed"]["offset"] += distance
        file.write_text(json.dumps(data))
        result = CliRunner().invoke(main, ["verify", str(model)])
        assert result.exit_code == 1 and "embedding" in result.stderr and result.stderr.count("\n") == 1


def test_more_tokens_than_there_is_context_or_memory_for_are_refused(bundle_of, monkeypatch):
    def refused(tokens):
        result = CliRunner().invoke(main, ["verify", str(bundle_of()), "--tokens", str(tokens)])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and result.stdout == ""
        return result.stderr

    context = open_bundle(bundle_of()).config.max_positions
    assert f"context of {context}" in refused(context + 1)
    monkeypatch.setattr("ouro_edge.evaluation.verify.available_memory", lambda: 1 << 20)
    assert "GB are free: ask for fewer" in refused(context)


def test_a_short_context_is_verified_as_it_is(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=8)
    assert all(check.passed for check in verify(exported(checkpoint, tmp_path / "model", "int8")))


def test_a_negative_seed_is_refused(bundle_of):
    result = CliRunner().invoke(main, ["verify", str(bundle_of()), "--seed", "-1"])
    assert result.exit_code == 2 and "--seed" in result.stderr


def test_inspect_names_a_directory_that_may_not_be_looked_into(bundle_of, monkeypatch):
    model, is_file = bundle_of(), Path.is_file

    def refuse(self):
        if self.name == "ouro_edge.json":
            raise PermissionError(13, "Permission denied")
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refuse)
    result = CliRunner().invoke(main, ["inspect", str(model)])
    assert result.exit_code == 1 and "ouro_edge.json cannot be read: Permission denied" in result.stderr


def test_inspect_prints_no_control_characters(bundle_of, tmp_path):
    model = shutil.copytree(bundle_of(precision="int8"), tmp_path / "model")
    file = model / "ouro_edge.json"
    data = json.loads(file.read_text())
    data |= {"name": "a\x1b]0;b\nc", "source": {"path": "\x1b[2J"}}
    nothing = {"values": {"offset": 0, "dtype": "float32", "shape": [0]}}
    data["tensors"]["\x1b[31m"] = {"shape": [0], "scheme": None, "parts": nothing, "error": None}
    file.write_text(json.dumps(data))
    assert open_bundle(model).manifest.name == "a\x1b]0;b\nc"
    result = CliRunner().invoke(main, ["inspect", str(model), "--tensors"])
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    assert r"a\x1b]0;b\nc" in result.stdout


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("shift", [-4096, -4, 1, 4, 64, 4096, "head"])
def test_an_embedding_at_another_place_is_noticed(bundle_of, checkpoint_of, tmp_path, tied, precision, shift):
    """Without the checkpoint: the graphs do not read the embedding, so that nothing else would show it."""
    path = shutil.copytree(bundle_of(checkpoint_of(tie_word_embeddings=tied), precision), tmp_path / "model")
    manifest = json.loads((path / "ouro_edge.json").read_text())
    parts = manifest["tensors"]["embedding"]["parts"]
    if shift != "head":
        next(iter(parts.values()))["offset"] += shift
    elif tied:
        pytest.skip("the head is the embedding")
    else:
        for name, part in manifest["tensors"]["head"]["parts"].items():
            part["offset"], parts[name]["offset"] = parts[name]["offset"], part["offset"]
    (path / "ouro_edge.json").write_text(json.dumps(manifest))
    assert CliRunner().invoke(main, ["verify", str(path)]).exit_code == 1
