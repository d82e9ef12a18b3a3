"""Nanbeige against what mlx-lm and llama.cpp computed, from the checkpoint and from GGUF."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from models import GOLDEN

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.config import from_hf
from ouro_edge.cli import main
from ouro_edge.errors import ConfigError, RequestError
from ouro_edge.export.gguf.config import read_config
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.source import SourceFile
from ouro_edge.export.open_checkpoint import open_checkpoint

NANBEIGE = GOLDEN.parent / "nanbeige-tiny"
GGUF = NANBEIGE / "nanbeige-tiny.gguf"
PROMPT = 12


@pytest.fixture(scope="module")
def expected():
    with np.load(NANBEIGE / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["checkpoint", "gguf", "written gguf"])
def model(request, tmp_path_factory):
    path = GGUF
    if request.param != "gguf":
        kind = {"format": "gguf"} if "gguf" in request.param else {}
        out = tmp_path_factory.mktemp("nanbeige") / ("model.gguf" if kind else "model")
        path = ouro_edge.export(NANBEIGE, out, precision="fp32", calibration=None, **kind).path
    with ouro_edge.load(path) as loaded:
        yield loaded


@pytest.mark.parametrize("source", [NANBEIGE, GGUF])
@pytest.mark.parametrize("row", [0, 1])
def test_reference(expected, source, row):
    checkpoint = open_checkpoint(source)
    weights = dict(checkpoint.weights)
    steps = reference.run(checkpoint.config, weights, expected["input_ids"][row])
    assert checkpoint.config.loops == 2 and checkpoint.config.q_size != checkpoint.config.hidden_size
    for loop in range(2):
        np.testing.assert_allclose(steps.hidden[loop], expected["loop_hidden"][loop, row], atol=1e-4)
        logits = reference.head(weights, steps.hidden[loop])
        np.testing.assert_allclose(logits, expected[f"logits_loops{loop + 1}"][row], atol=1e-4)


@pytest.mark.parametrize("row", [0, 1])
def test_every_loop_count_and_greedy_tokens(expected, model, row):
    ids = expected["input_ids"][row].tolist()
    for depth in (1, 2):
        out = model.forward(ids, exit=ouro_edge.FixedDepth(depth, force=True))
        np.testing.assert_allclose(out.logits, expected[f"logits_loops{depth}"][row], atol=1e-3)
    events = model.generate(ids[:PROMPT], max_tokens=12, stop_ids=())
    assert [e.id for e in events if isinstance(e, ouro_edge.Token)] == expected["greedy"][row].tolist()


def test_fewer_loops_need_force(model):
    for policy in (ouro_edge.FixedDepth(1), ouro_edge.parse_exit("agreement")):
        with pytest.raises(RequestError, match="trained for 2 loops only"):
            model.forward([3, 4], exit=policy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loop_share_kv", True), ("loop_loss_weights", [0.5]), ("enable_mhc", True), ("emb_neighbor_num", 2),
     ("skip_loop_final_norm", 1), ("insert_ngram_layer_idx", [1]), ("kv_channels", 8), ("num_loops", None),
     ("head_dim", None)],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(name, value):
    data = json.loads((NANBEIGE / "config.json").read_text())
    with pytest.raises(ConfigError, match=name):
        from_hf({**data, name: value})


def test_a_gguf_without_a_loop_count_is_refused(tmp_path):
    shutil.copy(GGUF, tmp_path / "model.gguf")
    header = read_header(SourceFile(tmp_path / "model.gguf"))
    del header.metadata["nanbeige.num_loops"]
    with pytest.raises(ConfigError, match="num_loops is missing"):
        read_config(header)


@pytest.mark.parametrize("loops", [2, 3])
@pytest.mark.parametrize("source", ["checkpoint", "written gguf", "gguf"])
def test_a_norm_after_the_last_loop_only(expected, tmp_path, loops, source):
    """The head sees the normed states, the next loop those before the norm."""
    copied = tmp_path / "model"
    shutil.copytree(NANBEIGE, copied)
    fields = json.loads((NANBEIGE / "config.json").read_text()) | {"num_loops": loops, "skip_loop_final_norm": True}
    (copied / "config.json").write_text(json.dumps(fields))
    opened, wanted = open_checkpoint(copied), expected[f"logits_skipnorm_loops{loops}"]
    steps = reference.run(opened.config, opened.weights, expected["input_ids"][0])
    np.testing.assert_allclose(reference.logits(opened.config, opened.weights, steps.hidden[-1]), wanted[0], atol=1e-4)
    out = tmp_path / ("out.gguf" if "gguf" in source else "out")
    ouro_edge.export(copied, out, precision="fp32", format="gguf" if "gguf" in source else "bundle")
    if source == "gguf":  # the published file, with the two values changed
        header = read_header(SourceFile(GGUF))
        config, _ = read_config(
            replace(header, metadata=header.metadata | {
                "nanbeige.num_loops": loops, "nanbeige.skip_loop_final_norm": True,
            })
        )  # fmt: skip
        assert replace(config, pad_token_id=0) == open_checkpoint(out).config and not config.loop_norm
    for kv in ("fp32", "int8") if source == "checkpoint" else ("fp32",):
        with ouro_edge.load(out, kv=kv) as loaded:
            found = loaded.forward(expected["input_ids"][1].tolist()).logits
            np.testing.assert_allclose(found, wanted[1], atol=1e-3 if kv == "fp32" else 0.3)


@pytest.mark.parametrize("loops", [3, 4])
@pytest.mark.parametrize("row", [0, 1])
def test_more_loops_than_trained(expected, tmp_path, loops, row):
    ids = expected["input_ids"][row].tolist()
    exported = ouro_edge.export(NANBEIGE, tmp_path / "out", precision="fp32").path
    for path in (exported, GGUF):
        with ouro_edge.load(path, loops=loops) as loaded:
            assert loaded.config.loops == loops
            np.testing.assert_allclose(loaded.forward(ids).logits, expected[f"logits_loops{loops}"][row], atol=1e-3)
    with pytest.raises(RequestError, match="measured for 2 loops: use --kv fp32"):
        ouro_edge.load(exported, loops=3, kv="int8")
    with ouro_edge.load(exported, loops=1) as loaded:
        assert loaded.config.loops == 2


def test_numbers_of_loops_on_the_command_line(expected):
    ids = expected["input_ids"][0][:PROMPT].tolist()

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["run", str(GGUF), "--ids", " ".join(map(str, ids)), "-n", "4", *arguments])

    for loops in (1, 3):
        refused = run("--loops", str(loops))
        assert refused.exit_code == 1 and "--force-loops" in refused.output
        with ouro_edge.load(GGUF, loops=loops) as loaded:
            rule = ouro_edge.FixedDepth(loops, force=True)
            *tokens, _ = loaded.generate(ids, exit=rule, max_tokens=4, sampler=ouro_edge.Sampler())
        wanted = " ".join(str(token.id) for token in tokens)
        for rule in (("--loops", str(loops)), ("--exit", f"depth:{loops}")):
            found = json.loads(run(*rule, "--force-loops", "--json").stdout)
            assert " ".join(map(str, found["ids"])) == wanted
            assert set(found["depth"]) == {loops}


def test_a_number_of_loops_that_is_fixed():
    with pytest.raises(RequestError, match="this model runs at most 8 loops"):
        ouro_edge.load(NANBEIGE.parent / "hrm-tiny" / "hrm-tiny.gguf", loops=9)
