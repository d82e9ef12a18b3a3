"""The main job on a real model: SmolLM2-135M-Instruct as published in a GGUF file, in every precision.

The golden answers are those of the file's weights in float32. `make smollm2` fetches the file; without it these tests
are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ouro_edge
from ouro_edge.cli import main

pytestmark = pytest.mark.smollm2
CASES = json.loads((Path(__file__).parent / "golden" / "smollm2.json").read_text())["cases"]


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def model(request, smollm2, tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm2") / request.param
    block = ["--block-size", "32"] if request.param == "int4" else []
    options = ["-p", request.param, "--rounding", "nearest", *block]
    result = CliRunner().invoke(main, ["export", str(smollm2), str(out), *options])
    assert result.exit_code == 0, result.output
    with ouro_edge.load(out) as loaded:
        yield request.param, loaded


def answers(model, case):
    events = model.generate(case["ids"], max_tokens=len(case["greedy"]), sampler=ouro_edge.Sampler())
    return [event for event in events if isinstance(event, ouro_edge.Token)]


def test_tokenizer_and_template(model):
    _, loaded = model
    for case in CASES:
        assert loaded.tokenizer.encode(case["text"]) == case["ids"]
        if case["kind"] == "chat":
            assert loaded.render([{"role": "user", "content": case["prompt"]}]) == case["text"]


def test_greedy_answers(model):
    precision, loaded = model
    same = total = 0
    for case in CASES:
        found = [token.id for token in answers(loaded, case)]
        if precision == "fp32":
            assert found == case["greedy"]
        # count agreement given the golden history, so that one different word does not make all later ones differ
        history = case["ids"] + case["greedy"][:-1]
        best = loaded.forward(history).logits[len(case["ids"]) - 1 :].argmax(axis=1)
        same += int((best == np.array(case["greedy"])).sum())
        total += len(best)
    assert same / total >= {"fp32": 1.0, "int8": 0.94, "int4": 0.7}[precision]


def test_logits(model):
    precision, loaded = model
    if precision != "fp32":
        return
    for case in CASES:
        logits = loaded.forward(case["ids"]).logits[-1]
        np.testing.assert_allclose(logits[case["top_ids"]], case["top_logits"], atol=2e-3)


def test_the_capital_of_france_is_paris(model):
    _, loaded = model
    question = [{"role": "user", "content": "What is the capital of France?"}]
    *_, done = loaded.chat(question, max_tokens=32, sampler=ouro_edge.Sampler())
    assert "Paris" in done.text


NEAREST = ("--rounding", "nearest")


@pytest.mark.parametrize("options", [NEAREST, (*NEAREST, "--block-size", "32"), ("-p", "int8")])
def test_an_export_passes_verify(smollm2, tmp_path, options):
    result = CliRunner().invoke(main, ["export", str(smollm2), str(tmp_path / "model"), *options])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "model"), "--against", str(smollm2)])
    assert result.exit_code == 0 and "FAILED" not in result.stdout, result.output
