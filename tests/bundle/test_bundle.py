"""A damaged, incomplete or foreign bundle is refused in one line; nothing is read beyond its files."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest

import ouro_edge
from ouro_edge.bundle.directory import MANIFEST_FILE, check_files, open_bundle
from ouro_edge.errors import BundleError


@pytest.fixture
def bundle(bundle_of, tmp_path):
    return shutil.copytree(bundle_of(precision="int4"), tmp_path / "model")


def edit(bundle, change):
    """Apply a change to the manifest's JSON."""
    file = bundle / MANIFEST_FILE
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(format="other"), "'other'"),
        (lambda d: d.pop("model"), "damaged"),
        (lambda d: d["model"].pop("loops"), "loops"),
        (lambda d: d["model"].update(loops=0), "loops"),
        (lambda d: d["model"].update(extra=1), "extra"),
        (lambda d: d.pop("tensors"), "damaged"),
        (lambda d: d.update(tensors=[]), "damaged"),
        (lambda d: d["tensors"].pop("embedding"), "embedding"),
        (lambda d: d["tensors"]["embedding"].update(shape=[3, 64]), "embedding"),
        (lambda d: d["tensors"]["embedding"]["scheme"].update(bits=3), "bits"),
        (lambda d: d["tensors"]["embedding"]["scheme"].update(colour=3), "colour"),
        (lambda d: d["tensors"]["embedding"]["parts"].pop("scales"), "embedding"),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(offset=10**9), "beyond"),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(offset=-8), "beyond"),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(shape=[1 << 40]), "stores embedding as"),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(dtype="float32"), "stores embedding as"),
        (lambda d: d["tensors"]["embedding"]["parts"]["scales"].update(dtype="uint8"), "stores embedding as"),
        (lambda d: d["tensors"]["embedding"]["scheme"].update(block_size=32), "stores embedding as"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(dtype="uint8"), "stores norm as"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(shape=[1]), "stores norm as"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(shape=[1] * 100), "stores norm as"),
        (
            lambda d: d["tensors"]["norm"].update(scheme={"bits": 8, "block_size": 32, "symmetric": True}),
            "not a matrix",
        ),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(offset=4), "page"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(offset=0), "overlap"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(offset=float("inf")), "damaged"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(offset="0"), "damaged"),
        (lambda d: d["tensors"]["norm"]["parts"]["values"].update(offset=0.5), "damaged"),
        (lambda d: d["tensors"]["embedding"].update(error={"snr_db": "x"}), "damaged"),
        (lambda d: d["tensors"]["embedding"].update(error=[1]), "damaged"),
        (lambda d: d["tensors"]["embedding"].update(error={}), "damaged"),
        (lambda d: d["tensors"]["embedding"]["error"].update(snr_db="x"), "damaged"),
        (lambda d: d["tensors"]["embedding"]["error"].update(max_error=None), "damaged"),
        (lambda d: d["model"].update(rope_theta=5.0), "rope_theta is .* but 5.0 in"),
        (lambda d: d["model"].update(loops=3), "loops is 4 in config.json, but 3 in"),
        (lambda d: d["files"].update({"a" * 300: {"size": 1, "sha256": ""}}), "cannot be read"),
        (lambda d: d["files"].update({"a\x00b": {"size": 1, "sha256": ""}}), "damaged"),
        (lambda d: d["files"].update({"\ud800": {"size": 1, "sha256": ""}}), "damaged"),
        (lambda d: d["tensors"]["embedding"]["parts"]["packed"].update(dtype="object"), "stores embedding as"),
        (lambda d: d["files"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "damaged"),
        (lambda d: d["files"].pop("head.onnx"), r"head\.onnx"),
        (lambda d: d["files"].update({"tokenizer.json": {"size": 1, "sha256": ""}}), r"tokenizer\.json is missing"),
    ],
)
def test_a_wrong_manifest_is_named(bundle, change, says):
    edit(bundle, change)
    with pytest.raises(BundleError, match=says) as caught:
        ouro_edge.load(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "head.onnx", "model.onnx.data", "config.json"])
def test_a_missing_truncated_or_changed_file_is_named(bundle, name):
    file = bundle / name
    data = file.read_bytes()
    for content, says in ((data[:-1], "bytes"), (data[:-1] + bytes([data[-1] ^ 1]), "checksum")):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=says):
            ouro_edge.load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match="missing"):
        ouro_edge.load(bundle)


def replace(bundle, name, content):
    """Put other bytes into a file, with a record in the manifest that agrees."""
    (bundle / name).write_bytes(content)
    record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(bundle, lambda d: d["files"].update({name: record}))


@pytest.mark.parametrize(("content", "says"), [(b"{}", "model_type"), (b"[", "JSON"), (b"\xff", "JSON")])
def test_a_config_that_cannot_be_read_is_named(bundle, content, says):
    replace(bundle, "config.json", content)
    with pytest.raises(BundleError, match=rf"config\.json.*{says}"):
        open_bundle(bundle)


def test_a_model_without_its_gate_agrees_with_its_config(bundle):
    def drop(data):
        data["model"]["has_gate"] = False
        del data["tensors"]["exit_gate.weight"], data["tensors"]["exit_gate.bias"]

    edit(bundle, drop)
    assert not open_bundle(bundle).config.has_gate


def test_text_that_is_not_utf8_is_named(bundle):
    replace(bundle, "tokenizer.json", b"\xff\xfe")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read as text"):
        ouro_edge.load(bundle)


@pytest.mark.parametrize("name", ["is_file", "stat"])
def test_a_file_that_may_not_be_read_is_one_line(bundle, monkeypatch, name):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        open_bundle(bundle)


def test_large_files_are_hashed_by_verification_only(bundle):
    file = bundle / "model.onnx.data"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    opened = open_bundle(bundle, max_hashed_bytes=200_000)
    with pytest.raises(BundleError, match="checksum"):
        check_files(bundle, opened.manifest)
    with pytest.raises(BundleError, match="checksum"):
        open_bundle(bundle)


def test_a_directory_without_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="not an exported model"):
        open_bundle(tmp_path)


def test_a_graph_that_onnxruntime_refuses_is_one_line(bundle, capfd):
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    graph.graph.node[3].input[0] = "missing"
    replace(bundle, "model.onnx", graph.SerializeToString())
    with pytest.raises(BundleError, match="cannot be loaded by onnxruntime") as caught:
        ouro_edge.load(bundle)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_the_embedding_reads_only_the_rows_that_are_asked_for(bundle_of):
    bundle = open_bundle(bundle_of(precision="int8"))
    whole = bundle.values("embedding")
    ids = np.array([3, 0, 383, 3])
    np.testing.assert_array_equal(bundle.embedding()(ids), whole[ids])
