"""The destination of an export: what is there is kept, and a failed export leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from models import GOLDEN, hf_config, hf_tensors, write_checkpoint
from safetensors.numpy import save_file

from ouro_edge.bundle.directory import MANIFEST_FILE, open_bundle
from ouro_edge.errors import CheckpointError, ExportError
from ouro_edge.export.exporter import export_bundle
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import preset


def export(checkpoint, out, precision="int4", **options):
    return export_bundle(open_checkpoint(checkpoint), out, preset(precision), **options)


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
