"""A bundle is written whole or not at all, and says truly what it holds."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import onnx
from models import GOLDEN, write_checkpoint

from ouro_edge.bundle.directory import BLOCK_FILES, MANIFEST_FILE, open_bundle
from ouro_edge.export.exporter import export_bundle
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import preset


def export(checkpoint, out, precision="int4", **options):
    return export_bundle(open_checkpoint(checkpoint), out, preset(precision), **options)


def test_what_a_bundle_holds(tmp_path):
    export(GOLDEN, tmp_path / "out", "int4", source={"repo_id": "owner/name", "revision": "abc"})
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "head.onnx", "model.onnx.data", MANIFEST_FILE, *BLOCK_FILES.values()}
    assert (tmp_path / "out" / "config.json").read_bytes() == (GOLDEN / "config.json").read_bytes()
    bundle = open_bundle(tmp_path / "out")
    assert bundle.manifest.source["revision"] == "abc"
    schemes = {re.sub(r"layers\.\d+\.", "", n): t.scheme and t.scheme.bits for n, t in bundle.manifest.tensors.items()}
    assert schemes == {
        "embedding": 8, "head": 8, "qkv_proj": 4, "o_proj": 4, "gate_up_proj": 4, "down_proj": 4, "norm": None,
        "attn_norm": None, "attn_post_norm": None, "ffn_norm": None, "ffn_post_norm": None,
        "exit_gate.weight": None, "exit_gate.bias": None,
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "base_model: owner/name" in card and "base_model_relation: quantized" in card


def test_the_graph_holds_the_block_once_with_the_expected_operators(tmp_path):
    export(GOLDEN, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GroupQueryAttention") == 3
    assert kinds.count("MatMulNBits") == 3 * 4
    levels = {a.i for n in graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"}
    assert levels == {4}
    assert kinds.count("SkipSimplifiedLayerNormalization") == 3 * 2
    assert all(e.key != "location" or e.value == "model.onnx.data" for t in graph.initializer for e in t.external_data)


def test_a_tied_head_shares_the_embedding(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    manifest = export(checkpoint, tmp_path / "out")
    assert "head" not in manifest.tensors
    head = onnx.load(tmp_path / "out" / "head.onnx", load_external_data=False).graph
    offsets = {e.value for t in head.initializer for e in t.external_data if e.key == "offset"}
    assert str(manifest.tensors["embedding"].parts["packed"].offset) in offsets


def test_the_result_does_not_depend_on_how_tensors_are_cut(tmp_path, monkeypatch):
    export(GOLDEN, tmp_path / "whole")
    monkeypatch.setattr("ouro_edge.export.data_file.PIECE_VALUES", 1000)
    export(GOLDEN, tmp_path / "pieces")
    whole, pieces = (tmp_path / name / "model.onnx.data" for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    export(GOLDEN, tmp_path / "out", progress=lambda done, total, name: seen.append((done, total)))
    total = sum(int(np.prod(v.shape)) for v in open_checkpoint(GOLDEN).weights.values())
    assert seen[0] == (0, total) and seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_card_cannot_be_injected(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "evil](javascript:x)\n# owned <script>")
    export(checkpoint, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "\n# owned" not in card


def test_the_manifest_lists_every_array_once_and_without_overlap(tmp_path):
    export(GOLDEN, tmp_path / "out", "int4")
    data = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    spans = []
    for tensor in data["tensors"].values():
        for part in tensor["parts"].values():
            width = 4 if part["dtype"] == "float32" else 1
            spans.append((part["offset"], part["offset"] + int(np.prod(part["shape"])) * width))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] == data["files"]["model.onnx.data"]["size"]
