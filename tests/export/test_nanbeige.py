"""Nanbeige against what mlx-lm and llama.cpp computed, from the checkpoint and from GGUF."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.config import from_hf
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
     ("skip_loop_final_norm", True), ("insert_ngram_layer_idx", [1]), ("kv_channels", 8), ("num_loops", None),
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
