"""`ouro-edge doctor`: what the report says about models as they should be, and about models that are not."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from models import GOLDEN, write_checkpoint

import ouro_edge
from ouro_edge.arch.published import PUBLISHED
from ouro_edge.cli import main
from ouro_edge.measure import doctor

ROOT = Path(__file__).parents[2]
NANO = ROOT / "training" / "Ouro-nano"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def errors(text: str) -> list[list[float]]:
    """The columns of the table of depths, as numbers."""
    return [[float(cell.rstrip("%")) for cell in line.split()[2:]] for line in text.splitlines()
            if re.match(r"depth \d  ", line)]  # fmt: skip


def test_the_built_in_model():
    result = report("--tokens", 32)
    assert result.exit_code == 0, result.output
    assert "config: not one of the published Ouro models" in result.stdout
    rows = errors(result.stdout)
    assert len(rows) == 4
    assert all(kl < 0.01 and same > 90 and abs(math.log(own / reference)) < 0.1 for kl, same, reference, own in rows)
    assert "'Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?', depth 4: 'Cleo'" in result.stdout
    assert "prefill 64, depth 4: " in result.stdout and "memory peak: " in result.stdout
    assert str(ROOT) not in result.stdout


def test_a_checkpoint_is_converted_and_compared_with_itself(tmp_path):
    result = report(GOLDEN, "--tokens", 16)
    assert result.exit_code == 0, result.output
    assert "compared with the checkpoint in float32" in result.stdout
    assert "tokenizer: none" in result.stdout
    assert all(0 < kl < 1 for kl, *_ in errors(result.stdout))
    assert list((tmp_path / "cache").iterdir())


def test_an_export_is_compared_with_its_checkpoint(bundle_of):
    path = bundle_of(GOLDEN, "int4")
    with_own, with_source = (errors(report(path, "--tokens", 16, *more).stdout) for more in ([], ["--against", GOLDEN]))
    assert all(source[0] > own[0] for own, source in zip(with_own, with_source, strict=True))
    assert errors(report(bundle_of(GOLDEN, "fp32"), "--tokens", 16, "--against", GOLDEN).stdout)[0][0] < 1e-4


def test_quick_omits_what_takes_time():
    result = report("--quick")
    assert result.exit_code == 0 and errors(result.stdout) == [] and "memory peak" not in result.stdout


@pytest.mark.parametrize("against", ["other checkpoint", "export"])
def test_the_checkpoint_of_another_model_is_refused(tmp_path, bundle_of, against):
    path = bundle_of(GOLDEN, "int4")
    other = path if against == "export" else write_checkpoint(tmp_path / "other")
    result = report(path, "--against", other)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert ("another model" in result.stderr) or ("exported model" in result.stderr)


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = report("nobody/no-such-model")
    assert result.exit_code == 1 and "nobody/no-such-model" in result.stderr


def with_config(bundle, **changes):
    return SimpleNamespace(name="model", config=replace(bundle.config, **changes))


def test_a_published_config_and_a_wrong_one():
    with ouro_edge.load() as model:
        right = with_config(model, **PUBLISHED["Ouro-1.4B"])
        wrong = with_config(model, **{**PUBLISHED["Ouro-1.4B"], "loops": 3})
    *_, found = doctor.config_findings(right)
    assert found.passed and found.text == "equals Ouro-1.4B and Ouro-1.4B-Thinking"
    *_, found = doctor.config_findings(wrong)
    assert found.passed is False and "loops is 3, published is 4" in found.text


def test_token_ids_and_template_of_a_published_config(tmp_path):
    """A checkpoint of a published model with another template and other ids of special tokens is reported."""
    with ouro_edge.load() as model:
        findings = {f.name: f.passed for f in doctor.text_findings(as_published(model, {}))}
        assert findings == {"special tokens": True, "stop ids": True, "tokenizer": True, "chat template": True}
        wrong = {"render": lambda messages: "user: hi", "stop_ids": (0,)}
        findings = {f.name: f.passed for f in doctor.text_findings(as_published(model, wrong))}
    assert findings == {"special tokens": True, "stop ids": False, "tokenizer": True, "chat template": False}


def as_published(model, changes):
    names = ("has_tokenizer", "tokenizer", "stop_ids", "render")
    config = replace(model.config, **PUBLISHED["Ouro-1.4B"])
    return SimpleNamespace(config=config, **{name: getattr(model, name) for name in names} | changes)


def test_a_failed_check_is_the_exit_status(bundle_of, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "Ouro-1.4B", published_like(bundle_of(GOLDEN)) | {"rope_theta": 5.0})
    result = report(bundle_of(GOLDEN), "--quick")
    assert result.exit_code == 1
    assert "differs from Ouro-1.4B: rope_theta is" in result.stdout and "FAILED" in result.stdout
    assert result.stderr.startswith("Error: ") and "is not as published: config" in result.stderr


def published_like(path: Path) -> dict[str, object]:
    model = json.loads((path / "ouro_edge.json").read_text())["model"]
    return {name: model[name] for name in PUBLISHED["Ouro-2.6B"]}
