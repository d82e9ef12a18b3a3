"""A bundle is written whole or not at all, and says truly what it holds."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import GOLDEN, hf_config, hf_tensors, write_checkpoint
from safetensors.numpy import save_file

from ouro_edge.bundle.directory import BLOCK_FILES, MANIFEST_FILE, open_bundle
from ouro_edge.errors import CheckpointError, ExportError
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


def test_an_existing_destination_is_not_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ExportError):
            export(GOLDEN, out, overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="exists"):
        export(GOLDEN, tmp_path / "file")


def test_overwrite_replaces_a_bundle_only_by_a_whole_one(tmp_path):
    out = tmp_path / "out"
    export(GOLDEN, out, "int4")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ExportError, match="--overwrite"):
        export(GOLDEN, out, "int8")
    broken = broken_checkpoint(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="not finite"):
        export(broken, out, "int8", overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    export(GOLDEN, out, "int8", overwrite=True)
    assert open_bundle(out).manifest.recipe == "int8"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "out"]


def once(act):
    """A progress callback that acts in the middle of an export."""
    acts = [act]
    return lambda done, total, name: acts.pop()() if acts and done else None


@pytest.mark.parametrize("existed", [False, True])
def test_what_appears_at_the_destination_meanwhile_is_kept(tmp_path, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    def appear():
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years of work")

    with pytest.raises(ExportError, match=r"exists and is not empty|now holds 'thesis.txt'"):
        export(GOLDEN, out, progress=once(appear))
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_deletes_nothing_but_the_model(tmp_path):
    out = tmp_path / "out"
    export(GOLDEN, out)
    write_checkpoint(out / "ckpt")
    with pytest.raises(ExportError, match=r"ckpt is inside .*out, which --overwrite would delete"):
        export(out / "ckpt", out, overwrite=True)
    with pytest.raises(ExportError, match="holds 'ckpt', which is not part of the model"):
        export(GOLDEN, out, overwrite=True)
    with pytest.raises(ExportError, match="holds 'notes'"):
        (out / "ckpt").rename(tmp_path / "ckpt")
        export(GOLDEN, out, overwrite=True, progress=once(lambda: (out / "notes").write_text("x")))
    assert (out / "notes").exists()
    open_bundle(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "out"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_overwrite_follows_a_link(tmp_path):
    export(GOLDEN, tmp_path / "out", "int4")
    for name in ("kv_ranges.json", "kv_ranges.npy", "exit_gate.json"):
        (tmp_path / "out" / name).touch()  # what calibrate and fit-gate add goes with the model
    (tmp_path / "link").symlink_to("out")
    export(GOLDEN, tmp_path / "link", "int8", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "out").manifest.recipe == "int8"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"]


def test_an_empty_destination_is_written_from_inside(tmp_path, monkeypatch):
    """It may be a mount point: it is never renamed, and a failure empties it again."""
    broken, out = broken_checkpoint(tmp_path / "broken"), tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    monkeypatch.chdir(out)
    with pytest.raises(CheckpointError, match="not finite"):
        export(broken, Path("."))
    assert list(out.iterdir()) == []
    plain = os.rename

    def fail(old, new):
        if Path(new).name == MANIFEST_FILE:
            assert len(list(out.iterdir())) > 5  # the manifest is the last
            raise OSError(28, "No space left on device")
        plain(old, new)

    with monkeypatch.context() as patch, pytest.raises(ExportError, match="No space left on device; nothing was kept"):
        patch.setattr(os, "rename", fail)
        export(GOLDEN, out)
    assert list(out.iterdir()) == []
    export(GOLDEN, Path("."))
    names = {p.name for p in out.iterdir()}
    assert names == {*open_bundle(out).manifest.files, MANIFEST_FILE}
    assert out.stat().st_ino == inode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "out"]


def test_what_killed_exports_left_is_removed_after_a_day(tmp_path):
    old, young, other = (
        tmp_path / name for name in (".out.0123abcd.partial", ".out.89abcdef.partial", ".o.01234567.partial")
    )
    for directory in (old, young, other):
        directory.mkdir()
        (directory / "model.onnx.data").touch()
    for directory in (old, other):
        os.utime(directory, (0, 0))
    export(GOLDEN, tmp_path / "out")
    assert not old.exists() and young.exists() and other.exists()


def test_interrupted_between_two_renames_the_old_model_is_back(tmp_path, monkeypatch):
    export(GOLDEN, tmp_path / "out", "int4")
    plain = os.rename

    def interrupt(old, new):
        if Path(old).suffix == ".partial":
            raise KeyboardInterrupt
        plain(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupt)
        export(GOLDEN, tmp_path / "out", "int8", overwrite=True)
    assert open_bundle(tmp_path / "out").manifest.recipe == "int4"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_old_model_that_nobody_needs_any_more_is_removed_after_a_day(tmp_path):
    old = tmp_path / ".out.0123abcd.old"
    old.mkdir()
    os.utime(old, (0, 0))
    export(GOLDEN, tmp_path / "out")
    assert old.exists()  # it may have been the only one
    export(GOLDEN, tmp_path / "out", overwrite=True)
    assert not old.exists()


def test_a_destination_that_cannot_be_looked_at_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"cannot be written: .*; nothing was kept"):
        export(GOLDEN, tmp_path / ("x" * 300))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ExportError, match="out cannot be written: Permission denied; nothing was kept"):
        export(GOLDEN, tmp_path / "out")


def broken_checkpoint(path):
    """A checkpoint whose last matrix holds a NaN, so that an export fails late."""
    write_checkpoint(path)
    tensors = hf_tensors(hf_config())
    tensors["lm_head.weight"][-1, -1] = np.nan
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_failed_export_leaves_nothing(tmp_path):
    broken = broken_checkpoint(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="head"):
        export(broken, tmp_path / "new" / "parents" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(done, total, name):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(GOLDEN, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from ouro_edge.export.open_checkpoint import open_checkpoint
        from ouro_edge.export.exporter import export_bundle
        from ouro_edge.quant import preset
        def kill(done, total, name):
            if done > total // 2:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        out = Path({str(tmp_path / "out")!r})
        export_bundle(open_checkpoint(Path({str(GOLDEN)!r})), out, preset("int4"), progress=kill)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob(MANIFEST_FILE))


@pytest.mark.skipif(os.name == "nt", reason="resource limits are POSIX")
def test_a_full_disk_is_one_line(tmp_path):
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        from ouro_edge.cli import main
        main(["export", {str(GOLDEN)!r}, {str(tmp_path / "out")!r}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*cannot be written.*nothing was kept\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


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
