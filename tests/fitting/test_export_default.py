"""What `ouro-edge export` does without --rounding: calibrates four bits, or says why not; and --report in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from models import write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.cli import main
from ouro_edge.errors import RequestError
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.measure.quality import evaluate

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    path = write_checkpoint(tmp_path_factory.mktemp("talker"), **SIZES)
    add_tokenizer(path)
    return path


def export(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_four_bits_are_calibrated_and_the_user_is_told(talker, tmp_path):
    result = export(talker, tmp_path / "out", "--no-calibration")
    assert open_bundle(tmp_path / "out").manifest.rounding["method"] == "calibrated"
    assert "int4, calibrated, " in result.stdout and "--rounding nearest takes none" in result.stderr
    export(talker, tmp_path / "near", "--no-calibration", "--rounding", "nearest")
    assert not open_bundle(tmp_path / "near").manifest.rounding


def test_a_gguf_file_is_calibrated_too(talker, tmp_path):
    export(talker, tmp_path / "out.gguf")
    export(talker, tmp_path / "near.gguf", "--rounding", "nearest")
    found, near = (evaluate(tmp_path / f"{n}.gguf", against=talker, windows=2).best for n in ("out", "near"))
    assert found.divergence.mean < near.divergence.mean


@pytest.mark.parametrize(("precision", "method"), [("int8", "scaled channels"), ("fp32", None)])
def test_other_formats_keep_the_nearest_codes(talker, tmp_path, precision, method):
    result = export(talker, tmp_path / "out", "-p", precision, "--no-calibration")
    assert open_bundle(tmp_path / "out").manifest.rounding.get("method") == method and not result.stderr


def test_without_a_tokenizer_or_memory_the_nearest_value_is_taken_and_said(talker, tmp_path, monkeypatch):
    result = export(write_checkpoint(tmp_path / "mute", **SIZES), tmp_path / "out", "--no-calibration")
    assert result.stderr.count("to the nearest value, without a calibration: this model has no tokenizer") == 1
    assert not open_bundle(tmp_path / "out").manifest.rounding
    monkeypatch.setattr("ouro_edge.fitting.export_rounding.available_memory", lambda: 10**7)
    result = export(talker, tmp_path / "small", "--no-calibration")
    assert re.search(r"a calibration needs 0\.\d GB of memory, and 0\.0 GB can be used", result.stderr)
    assert not open_bundle(tmp_path / "small").manifest.rounding


def test_the_function_calibrates_only_if_asked(talker, tmp_path):
    ouro_edge.export(talker, tmp_path / "out", calibration=None)
    assert not open_bundle(tmp_path / "out").manifest.rounding
    ouro_edge.export(talker, tmp_path / "asked", calibration=None, rounding=WeightCalibration(optional=True))
    assert open_bundle(tmp_path / "asked").manifest.rounding
    with pytest.raises(RequestError, match="optional is 1"):
        WeightCalibration(optional=1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="only the rounding of weights uses"):
        ouro_edge.export(talker, tmp_path / "x.gguf", precision="f16", calibration=None,
                         rounding=WeightCalibration("text", optional=True))  # fmt: skip


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_the_report_ends_with_the_divergence_from_the_source(talker, tmp_path, name):
    result = export(talker, tmp_path / name, "--report", *([] if "." in name else ["--no-calibration"]))
    line = result.stdout.splitlines()[-1]
    score = evaluate(tmp_path / name, against=talker, windows=2).best
    assert line.startswith(f"KL from the source: {score.divergence.mean:.4f} nats a token, same top token ")
    assert f"perplexity {score.perplexity:.2f} instead of {score.other_perplexity:.2f} (256 tokens" in line


def test_a_report_without_a_tokenizer_says_so(tmp_path):
    source = write_checkpoint(tmp_path / "mute", **SIZES)
    result = export(source, tmp_path / "out", "--report", "--no-calibration", "--rounding", "nearest")
    assert result.stdout.splitlines()[-1].startswith("KL from the source: not measured, ")
