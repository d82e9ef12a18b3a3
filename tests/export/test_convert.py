"""An export is published when all of it is there, KV ranges included; until then nothing can be taken for a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from models import GOLDEN, write_checkpoint

import ouro_edge
from ouro_edge.bundle.directory import is_bundle, open_bundle
from ouro_edge.errors import BundleError, ExportError
from ouro_edge.export.exporter import export_bundle
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import preset

KILL = """
    import os, signal, sys
    import ouro_edge
    def kill(done, total, what):
        if what == "KV ranges":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def run_until_killed(call):
    """Run a call in a process that kills itself while KV ranges are measured."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILL) + call], check=False)
    assert done.returncode == -getattr(signal, "SIGKILL", signal.SIGTERM)


def test_an_export_killed_while_it_calibrates_leaves_nothing_that_opens(tmp_path):
    run_until_killed(f"ouro_edge.export({str(GOLDEN)!r}, {str(tmp_path / 'out')!r}, progress=kill)")
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.") and (left / "model.onnx.data").is_file()
    assert not is_bundle(left)
    with pytest.raises(BundleError, match="not an exported model"):
        open_bundle(left)
    os.utime(left, (0, 0))  # it was killed long ago
    result = ouro_edge.export(GOLDEN, tmp_path / "out")
    assert open_bundle(result.path).has_kv_ranges and list(tmp_path.iterdir()) == [result.path]


def test_a_conversion_killed_while_it_calibrates_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    run_until_killed(f"ouro_edge.load({str(GOLDEN)!r}, progress=kill)")
    assert [is_bundle(path) for path in tmp_path.iterdir() if path.is_dir()] == [False]
    ouro_edge.load(GOLDEN, kv="int8").close()
    assert sorted(map(is_bundle, tmp_path.iterdir())) == [False, True]


def test_steps_see_the_finished_bundle_and_their_files_are_published(tmp_path):
    seen = []

    def step(bundle):
        assert bundle.path.parent == tmp_path and not is_bundle(bundle.path)
        seen.append((bundle.manifest, sorted(path.name for path in bundle.path.iterdir())))
        (bundle.path / "genai.onnx").write_text("added")

    out = tmp_path / "out"
    published = export_bundle(open_checkpoint(GOLDEN), out, preset("int4"), steps=[step])
    [(manifest, names)] = seen
    assert manifest == published and set(manifest.files) <= set(names)
    assert (out / "genai.onnx").read_text() == "added" and "genai.onnx" not in manifest.files
    ouro_edge.export(GOLDEN, out, calibration=None, overwrite=True)
    assert not (out / "genai.onnx").exists() and not open_bundle(out).has_kv_ranges
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (BundleError("too much"), ExportError),
        (OSError(28, "No space left on device"), ExportError),
    ],
)
def test_a_step_that_fails_leaves_what_was_there_before(tmp_path, error, wanted):
    def fail(bundle):
        raise error

    export_bundle(open_checkpoint(GOLDEN), tmp_path / "out", preset("int8"))
    for options in ({"out": tmp_path / "out", "overwrite": True}, {"out": tmp_path / "new"}):
        with pytest.raises(wanted):
            export_bundle(open_checkpoint(GOLDEN), recipe=preset("int4"), steps=[fail], **options)
    assert open_bundle(tmp_path / "out").manifest.recipe == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_cached_conversion_without_kv_ranges_is_made_again(tmp_path, monkeypatch):
    """Version 0.1 left such directories behind when it was killed."""
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    ouro_edge.load(checkpoint).close()
    [made] = (tmp_path / "cache").iterdir()
    (made / "kv_ranges.json").unlink()
    ouro_edge.load(checkpoint).close()
    assert open_bundle(made).has_kv_ranges
