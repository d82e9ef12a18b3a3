"""The functions of the package beside `load`, as a user calls them; `export` is also the name of a sub-package."""

from __future__ import annotations

import copy
import importlib
import inspect
import subprocess
import sys
import types
from unittest import mock

import pytest
from models import GOLDEN, write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import BundleError, CheckpointError, HubError, RequestError

EXPORTS = {
    "the function first": "import ouro_edge; f = ouro_edge.export; import ouro_edge.export.exporter",
    "the sub-package first": "import ouro_edge.export.exporter; import ouro_edge; f = ouro_edge.export",
    "from the package": "from ouro_edge import export as f; import ouro_edge",
    "from a sub-package": "from ouro_edge.export.exporter import export_bundle; from ouro_edge import export as f",
    "by another name": "import ouro_edge.export.exporter as e; from ouro_edge import export as f; e.export_bundle",
    "reloaded": "import importlib, ouro_edge; importlib.reload(ouro_edge); import ouro_edge.export as f",
    "all names": "from ouro_edge import *; f = export",
}


@pytest.mark.parametrize("code", EXPORTS.values(), ids=EXPORTS)
def test_export_is_the_function_in_every_order_of_imports(code):
    check = (
        "\nimport types, ouro_edge, ouro_edge.convert\n"
        "assert isinstance(f, types.FunctionType) and f is ouro_edge.export is ouro_edge.convert.export\n"
        "from ouro_edge.export.exporter import export_bundle\n"
        "assert ouro_edge.export.exporter.export_bundle is export_bundle\n"
        "assert f.__name__ == 'export' and f.__module__ == 'ouro_edge.convert' and 'Args:' in f.__doc__"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code + check], check=True)


def test_the_sub_package_stays_a_package():
    package = importlib.import_module("ouro_edge.export")
    function: object = ouro_edge.export
    assert isinstance(package, types.ModuleType) and package is not function
    assert copy.copy(ouro_edge.export) is ouro_edge.export
    assert list(inspect.signature(ouro_edge.export).parameters)[:2] == ["src", "out"]


def test_export_can_be_replaced_in_a_test():
    function = ouro_edge.export
    with mock.patch("ouro_edge.export") as replacement:
        importlib.import_module("ouro_edge.export.model_card")
        assert ouro_edge.export is replacement
    assert ouro_edge.export is function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ouro_edge, "export", None)
        patch.setattr("ouro_edge.export", 5)
        assert ouro_edge.export == 5
    assert ouro_edge.export is function


def test_from_a_checkpoint_to_a_checked_fitted_and_traced_model(tmp_path):
    checkpoint = add_tokenizer(write_checkpoint(tmp_path / "checkpoint", vocab_size=300))
    jobs = []
    result = ouro_edge.export(checkpoint, tmp_path / "model", precision="int8", progress=lambda *a: jobs.append(a))
    assert result.path == tmp_path / "model" and result.manifest == open_bundle(result.path).manifest
    assert result.manifest.recipe == "int8" and result.calibration_tokens > 16 and result.notes == ()
    assert result.size == sum(p.stat().st_size for p in result.path.iterdir() if p.name in result.manifest.files)
    assert open_bundle(result.path).has_kv_ranges
    done, total, what = zip(*jobs, strict=True)
    assert list(done) == sorted(done) and done[-1] == total[-1] and len(set(total)) == 1 and "KV ranges" in what

    checks = list(ouro_edge.verify(str(result.path), str(checkpoint), threads=1))
    assert len(checks) > 5 and all(check.passed for check in checks)
    assert ouro_edge.calibrate(str(result.path), "hello there how are you " * 20, tokens=32, threads=1) == 32

    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "hello there how are you the user and the assistant"}\n' * 3)
    with pytest.raises(RequestError, match=r"lines.jsonl gives \d+ tokens to fit on"):
        ouro_edge.fit_gate(str(result.path), str(lines))
    with ouro_edge.load(result.path, kv="int8") as model:
        traced = ouro_edge.trace(model, [5, 6, 7])
    assert [token.id for token in traced] == [6, 7]


def test_a_file_for_llama_cpp_from_a_checkpoint_and_from_an_exported_model(tmp_path, bundle_of):
    file = ouro_edge.export(GOLDEN, tmp_path / "model.gguf", precision="f32")
    again = ouro_edge.export(bundle_of(), tmp_path / "files", format="gguf")
    assert file.path == tmp_path / "model.gguf" and file.manifest is None and file.size == file.path.stat().st_size
    assert again.path.parent == tmp_path / "files" and again.path.suffix == ".gguf"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"precision": "int3"}, "precision is 'int3'"),
        ({"block_size": 48}, "block_size is 48"),
        ({"format": "onnx"}, "format is 'onnx'; expected bundle, gguf or hf"),
        ({"format": "gguf", "block_size": 32}, "takes no block size"),
        ({"format": "gguf", "symmetric": True}, "takes no symmetry"),
        ({"format": "gguf", "calibration": ouro_edge.Calibration("some text")}, "takes no calibration text"),
        ({"calibration": "some text"}, "calibration is 'some text'"),
        ({"calibration": ouro_edge.Calibration("some text")}, "has no tokenizer"),
        ({"revision": "main"}, "revision 'main' has no effect"),
    ],
)
def test_what_an_export_refuses_before_it_begins(tmp_path, arguments, says):
    with pytest.raises(RequestError, match=says):
        ouro_edge.export(GOLDEN, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_else_is_refused(tmp_path, bundle_of):
    with pytest.raises(BundleError, match="already"):
        ouro_edge.export(bundle_of(), tmp_path / "out")
    with pytest.raises(RequestError, match="is the name of a file"):
        ouro_edge.export(GOLDEN, tmp_path / "out.gguf", format="bundle")
    with pytest.raises(HubError, match="neither a directory nor"):
        ouro_edge.export("./nowhere", tmp_path / "out")
    with pytest.raises(RequestError, match="tokens is 15; expected a whole number of at least 16"):
        ouro_edge.Calibration(tokens=15)
    with pytest.raises(RequestError, match=r"calibration text is a .*Path; expected a str or None"):
        ouro_edge.Calibration(tmp_path)
    for call in (ouro_edge.calibrate, lambda path: ouro_edge.fit_gate(path, "x"), lambda p: list(ouro_edge.verify(p))):
        with pytest.raises(BundleError, match="not an exported model"):
            call(GOLDEN)
    with pytest.raises(CheckpointError):
        list(ouro_edge.verify(bundle_of(), GOLDEN / "config.json"))
    assert list(tmp_path.iterdir()) == []
