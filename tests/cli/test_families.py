"""Commands on models that were trained for all loops only: HRM-Text, with two stacks, and Nanbeige, with one."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from models import GOLDEN

import ouro_edge
from ouro_edge.cli import main

FAMILIES = {"hrm-tiny": 8, "nanbeige-tiny": 2}  # and their loops


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("families")
    return {name: ouro_edge.export(GOLDEN.parent / name, out / name, precision="int8").path for name in FAMILIES}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", FAMILIES)
def test_inspect_says_that_there_is_one_depth(exported, name):
    for path in (exported[name], GOLDEN.parent / name, GOLDEN.parent / name / f"{name}.gguf"):
        facts = json.loads(run("inspect", path, "--json"))
        assert facts["exits"] == f"none: trained for {FAMILIES[name]} loops only"
        assert "exit gate" not in facts and "exit threshold" not in facts
        if name == "hrm-tiny":
            assert facts["stacks"] == {"L": "2 layers x 6", "H": "2 layers x 2"}
            assert facts["prefix-LM"].startswith("yes") and "layers in the block" not in facts
        else:
            assert "stacks" not in facts and facts["layers in the block"] == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_verify_passes_and_names_the_passes_with_an_output(exported, name):
    output = run("verify", exported[name], "--against", GOLDEN.parent / name)
    loops = (4, 8) if name == "hrm-tiny" else (1, 2)
    assert [f"logits after loop {i}" in output for i in range(1, 9)] == [i in loops for i in range(1, 9)]


@pytest.mark.parametrize("name", FAMILIES)
def test_bench_and_eval_have_one_depth(exported, name, tmp_path):
    rows = json.loads(run("bench", exported[name], "-p", 8, "-n", 2, "--repeat", 1, "--json"))
    assert {speed["test"]["depth"] for run in rows["runs"] for speed in run["speeds"]} == {FAMILIES[name]}
    gguf = GOLDEN.parent / name / f"{name}.gguf"
    scores = json.loads(run("eval", gguf, "--windows", 1, "--against", GOLDEN.parent / name, "--json"))["scores"]
    assert [score["name"] for score in scores] == [f"depth {FAMILIES[name]}"]
    assert scores[0]["kl"]["mean"] < 1e-5


def test_a_text_is_read_in_both_directions_and_ids_are_not():
    gguf = GOLDEN.parent / "hrm-tiny" / "hrm-tiny.gguf"
    with ouro_edge.load(gguf) as model:
        ids = model.tokenizer.encode_text("hello there")
        wanted = {
            prefix: [t.id for t in list(model.generate(ids, prefix=prefix, max_tokens=6))[:-1]]
            for prefix in (0, 3, len(ids))
        }
    prompt = ("run", gguf, "-n", 6, "--json")
    assert json.loads(run(*prompt, "--raw", "-p", "hello there"))["ids"] == wanted[len(ids)]
    assert json.loads(run(*prompt, "--raw", "-p", "hello there", "--prefix", 0))["ids"] == wanted[0]
    assert json.loads(run(*prompt, "--ids", " ".join(map(str, ids))))["ids"] == wanted[0]
    assert json.loads(run(*prompt, "--ids", " ".join(map(str, ids)), "--prefix", 3))["ids"] == wanted[3]
    assert len({tuple(found) for found in wanted.values()}) == 3
    traced = run("trace", gguf, "-n", 2, "--raw", "-p", "hello there")
    assert "loop 8" in traced and "stops at" not in traced  # there is no gate


def test_the_model_card_describes_the_stacks(exported):
    card = (exported["hrm-tiny"] / "README.md").read_text()
    assert "2 stacks of 2 and 2 layers, 8 loops, all of which every token runs" in card
