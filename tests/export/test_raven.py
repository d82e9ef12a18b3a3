"""Raven models end to end: exported, loaded, quantised, several at once, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from models import GOLDEN
from safetensors.numpy import load_file, save_file

import ouro_edge
from ouro_edge.cli import main
from ouro_edge.errors import BundleError, CheckpointError, ExportError
from ouro_edge.fitting.calibrate_kv import calibrate

NAMES = ("raven-tiny", "retrofit-tiny", "retrofit-olmo-tiny")
PROMPT = 12


@pytest.fixture(scope="module", params=NAMES)
def case(request, bundle_of):
    """The golden checkpoint, its float32 model and the arrays of the published code."""
    path = GOLDEN.parent / request.param
    with np.load(path / "expected.npz") as arrays, ouro_edge.load(bundle_of(path), kv="fp32") as model:
        yield path, model, dict(arrays)


@pytest.mark.parametrize("row", [0, 1])
def test_every_depth_and_greedy_tokens(case, row):
    _, model, expected = case
    ids = expected["input_ids"][row].tolist()
    for depth in (1, 2, 4, 8):
        found = model.forward(ids, exit=ouro_edge.FixedDepth(depth)).logits
        np.testing.assert_allclose(found, expected[f"logits_steps{depth}"][row], atol=1e-3)
    hidden = model.states(ids).hidden
    for depth in (1, 2, 4):
        np.testing.assert_allclose(model.logits(hidden[depth - 1]), expected[f"logits_steps{depth}"][row], atol=1e-3)
    for depth, name in ((2, "greedy_zero_steps2"), (4, "greedy_zero_steps4"), (None, "greedy")):
        exit = None if depth is None else ouro_edge.FixedDepth(depth)
        events = list(model.generate(ids[:PROMPT], max_tokens=12, stop_ids=(), exit=exit))
        assert [token.id for token in events[:-1]] == expected[name][row].tolist()


@pytest.mark.parametrize("row", [0, 1])
def test_a_prompt_deeper_than_its_answer_as_in_the_published_code(bundle_of, row):
    """`mixed_pre4_dec2_full`: 12 ids at 4 steps, the others one by one at 2."""
    path = GOLDEN.parent / "raven-tiny"
    with np.load(path / "expected.npz") as arrays, ouro_edge.load(bundle_of(path), kv="fp32") as model:
        ids, expected = arrays["input_ids"][row].tolist(), arrays["mixed_pre4_dec2_full"][row]
        sequence = model.new_sequence()
        sequence.append(ids[:PROMPT])
        found = [sequence.run_until_exit(ouro_edge.FixedDepth(4)).logits[0]]
        for token in ids[PROMPT:]:
            sequence.append([token])
            found.append(sequence.run_until_exit(ouro_edge.FixedDepth(2)).logits[0])
    np.testing.assert_allclose(found, expected[PROMPT - 1 :], atol=1e-3)


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_quantised_caches(case, bundle_of, tmp_path, kv):
    path, exact, expected = case
    copy = shutil.copytree(bundle_of(path), tmp_path / "model")
    calibrate(copy, tokens=128)
    ids = expected["input_ids"][0].tolist()
    with ouro_edge.load(copy, kv=kv) as model:
        for depth in (2, 8):  # 8 is beyond the loops that were measured
            exit = ouro_edge.FixedDepth(depth)
            found, wanted = model.forward(ids, exit=exit).logits, exact.forward(ids, exit=exit).logits
            share = np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean())
            assert 0 < share < (0.08 if kv == "int8" else 0.6)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights(case, bundle_of, precision):
    path, exact, expected = case
    ids = expected["input_ids"][0].tolist()
    model_path = bundle_of(path, precision, block_size=32)
    checks = list(ouro_edge.verify(model_path, path, tokens=12))
    assert all(check.passed for check in checks) and len(checks) >= 5
    with ouro_edge.load(model_path, kv="fp32") as model:
        found, wanted = model.forward(ids).logits, exact.forward(ids).logits
    assert np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()) < (0.1 if precision == "int8" else 0.6)


@pytest.mark.parametrize("rule", ["depth:3", "change:0.7", "kl:0.3"])
def test_several_at_once_answer_as_alone(case, bundle_of, rule):
    path, alone, expected = case
    prompts = [row[:n].tolist() for row in expected["input_ids"] for n in (5, 12)]
    options = {"max_tokens": 6, "stop_ids": (), "exit": ouro_edge.parse_exit(rule), "speculate": False}
    wanted = [[token.id for token in list(alone.generate(ids, **options))[:-1]] for ids in prompts]
    found: dict[int, list[int]] = {}
    with ouro_edge.load(bundle_of(path), kv="fp32", parallel=4) as model:
        for index, event in model.generate_many(prompts, **options):
            if isinstance(event, ouro_edge.Token):
                found.setdefault(index, []).append(event.id)
    assert [found[index] for index in range(len(prompts))] == wanted


def test_commands(case, bundle_of, tmp_path):
    path, _, _ = case
    model, run = str(bundle_of(path)), CliRunner()
    for arguments, says in (
        (["inspect", model], "core"),
        (["verify", model, "--against", str(path)], "logits after loop 4"),
        (["bench", model, "-n", "2", "-p", "4", "-d", "0", "--depths", "1,6", "--repeat", "1"], "decode"),
    ):
        result = run.invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert says in result.output
    result = run.invoke(main, ["export", str(path), str(tmp_path / "x.gguf"), "--format", "gguf"])
    assert result.exit_code == 1 and "GGUF has no form" in result.output
    result = run.invoke(main, ["export", model, str(tmp_path / "x"), "--format", "hf"])
    assert result.exit_code == 1 and "huginn_raven models are read and not written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_trace_reports_the_depths_of_the_rule(case):
    _, model, expected = case
    ids, rule = expected["input_ids"][0].tolist(), ouro_edge.parse_exit("kl:0.3")
    traced = ouro_edge.trace(model, ids, exit=rule)
    assert [token.depth for token in traced] == model.score(ids, exit=rule).depth.tolist()
    for loop in (1, 2, 4):
        best = expected[f"logits_steps{loop}"][0].argmax(axis=1)[:-1].tolist()
        assert [token.loops[loop - 1][0][0] for token in traced] == best


@pytest.mark.parametrize(
    ("change", "says"),
    [("drop", "lacks"), ("rename", "does not use"), ("shape", "has shape"), ("extra layer", "does not use"),
     ("nan", "not finite")],
)  # fmt: skip
def test_damaged_checkpoints_are_refused(case, tmp_path, change, says):
    path, _, _ = case
    tensors = load_file(path / "model.safetensors")
    name = "transformer.core_block.1.attn.Wqkv.weight"
    if change == "drop":
        del tensors[name]
    elif change == "rename":
        tensors["transformer.core_block.1.attn.qkv.weight"] = tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:-1]
    elif change == "extra layer":
        tensors["transformer.core_block.9.norm_1.weight"] = tensors["transformer.core_block.1.norm_1.weight"]
    else:
        tensors[name][3, 4] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(path / "config.json", tmp_path)
    with pytest.raises((CheckpointError, ExportError), match=says):
        ouro_edge.export(tmp_path, tmp_path / "out", precision="int4", calibration=None)
    assert not (tmp_path / "out").exists()


def test_the_manifest_decides_the_variant(bundle_of, tmp_path):
    copy = shutil.copytree(bundle_of(GOLDEN.parent / "retrofit-olmo-tiny"), tmp_path / "model")
    manifest = json.loads((copy / "ouro_edge.json").read_text())
    assert manifest["model"]["model_type"] == "huginn_raven_olmo"
    for wrong in ("huginn_raven", "huginn_raven_llama", "ouro"):
        manifest["model"]["model_type"] = wrong
        (copy / "ouro_edge.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError):
            ouro_edge.load(copy)
