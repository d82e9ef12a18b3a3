"""Sensitivity of an exported model by loop and by tensor, against passes that are put together here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from models import write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.cli import main
from ouro_edge.errors import RequestError
from ouro_edge.evaluation.distances import kl_divergence, log_softmax
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.measure.quality import measure_sensitivity

TEXT = "the cat sat on the mat and the dog ran to the door. " * 20


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(root / "source", vocab_size=320, max_position_embeddings=64,
                              tie_word_embeddings=request.param)  # fmt: skip
    add_tokenizer(source)
    ouro_edge.export(source, root / "out", calibration=None)
    return source, root / "out"


def test_a_tensor_and_a_loop_cost_what_passes_with_their_rounded_weights_give(pair):
    source, out = pair
    found = measure_sensitivity(out, source, text=TEXT)
    checkpoint, stored = open_checkpoint(source), StoredWeights(open_bundle(out))
    config, original = checkpoint.config, {name: checkpoint.weights[name] for name in checkpoint.weights}
    original["head"] = checkpoint.weights["head"]
    ids = np.array(ouro_edge.load(out).tokenizer.encode_text(TEXT)[:64])

    def logits(weights_of_loop, head):
        h, tables = original["embedding"][ids], reference.rope_tables(config, len(ids))
        [block] = loop_program(config).stacks
        for weights in weights_of_loop:
            h = reference.run_pass(config, weights, block, h, *tables)
        return log_softmax(h[32:-1] @ head.T)

    base = logits([original] * 4, original["head"])

    def distance(*run):
        return kl_divergence(base, logits(*run)).mean()

    rounded = {**original, **{name: stored[name] for name in original if name.endswith("_proj")}}
    for loop in range(4):
        passes = [rounded if at == loop else original for at in range(4)]
        assert found.loops[loop] == pytest.approx(distance(passes, original["head"]), rel=1e-3)
    one = {**original, "layers.1.down_proj": stored["layers.1.down_proj"]}
    assert found.tensors["layers.1.down_proj"] == pytest.approx(distance([one] * 4, original["head"]), rel=1e-3)
    assert found.tensors["head"] == pytest.approx(distance([original] * 4, stored["head"]), rel=1e-3)
    layers = {f"layers.{i}.{part}_proj" for i in (0, 1) for part in ("qkv", "o", "gate_up", "down")}
    assert set(found.tensors) == layers | {"embedding", "head"}
    assert all(value > 0 for value in (*found.loops, *found.tensors.values()))


def test_scaled_channels_do_not_count_as_rounding(pair, tmp_path, monkeypatch):
    """An export whose norms and matrices are scaled against each other: only what is rounded makes a difference."""
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    source, plain = pair
    rounding = WeightCalibration(codes=False)
    ouro_edge.export(source, tmp_path / "out", precision="int8", calibration=None, rounding=rounding)
    assert not np.array_equal(StoredWeights(open_bundle(tmp_path / "out"))["layers.0.attn_norm"],
                              open_checkpoint(source).weights["layers.0.attn_norm"])  # fmt: skip
    eight, four = (measure_sensitivity(path, source, text=TEXT).tensors for path in (tmp_path / "out", plain))
    assert all(eight[name] < 0.05 * four[name] for name in four if name.startswith("layers."))


def test_the_command_prints_tables_or_json(pair, tmp_path):
    source, out = pair
    (tmp_path / "text.txt").write_text(TEXT)
    command = [
        "eval",
        str(out),
        "--against",
        str(source),
        "--text",
        str(tmp_path / "text.txt"),
        "--report",
        "sensitivity",
    ]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0 and shown.output.count("\n") == 5 + 1 + 11
    record = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)
    assert len(record["loops"]) == 4 and record["tensors"]["head"] > 0


def test_refusals(pair, tmp_path):
    source, out = pair
    with pytest.raises(RequestError, match="has no rounded weights"):
        measure_sensitivity(source, source)
    other = write_checkpoint(tmp_path / "other", vocab_size=330, max_position_embeddings=64)
    with pytest.raises(RequestError, match="was not exported from"):
        measure_sensitivity(out, other)
    missing = CliRunner().invoke(main, ["eval", str(out), "--report", "sensitivity"])
    assert missing.exit_code == 1 and "needs --against CHECKPOINT" in missing.stderr
