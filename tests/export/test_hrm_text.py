"""HRM-Text against what transformers computed, from every layout of a checkpoint and from GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import GOLDEN
from safetensors.numpy import load_file, save_file

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.config import from_hf
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.to_hf import to_hf
from ouro_edge.errors import CheckpointError, ConfigError, RequestError
from ouro_edge.export.gguf.config import read_config
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.source import SourceFile
from ouro_edge.export.open_checkpoint import open_checkpoint

HRM = GOLDEN.parent / "hrm-tiny"
GGUF = HRM / "hrm-tiny.gguf"
CYCLES = [(1, 1), (1, 3), (2, 1), (3, 3)]


@pytest.fixture(scope="module")
def expected():
    with np.load(HRM / "expected.npz") as arrays:
        return dict(arrays)


def hf(**changes: Any) -> dict[str, Any]:
    """The config.json of the tiny model; None removes a field."""
    data = json.loads((HRM / "config.json").read_text()) | changes
    return {name: value for name, value in data.items() if value is not None}


def checkpoint(path: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A copy of the tiny checkpoint with other fields or tensors."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf(**changes)))
    save_file(load_file(HRM / "model.safetensors") if tensors is None else tensors, path / "model.safetensors")
    return path


def cycles(high: int, low: int) -> dict[str, int]:
    """Fields for other numbers of cycles."""
    return {"H_cycles": high, "L_cycles": low, "num_hidden_layers": 2 * high * (low + 1)}


def split(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names that transformers uses in memory."""
    found = {}
    for name, values in tensors.items():
        if "attn.gqkv_proj" in name:
            for part, rows in zip("gqkv", np.split(values, 4), strict=True):
                found[name.replace("attn.gqkv", f"self_attn.{'gate' if part == 'g' else part}")] = rows.copy()
        elif "mlp.gate_up_proj" in name:
            for part, rows in zip(("gate", "up"), np.split(values, 2), strict=True):
                found[name.replace("gate_up", part)] = rows.copy()
        else:
            found[name.replace("attn.o_proj", "self_attn.o_proj")] = values
    return found


def logits(source: Path, ids: np.ndarray, prefix: int = 0) -> np.ndarray:
    """Logits of the last pass, by the reference."""
    opened = open_checkpoint(source)
    weights, program = opened.weights, loop_program(opened.config)
    steps = reference.run(opened.config, weights, ids, prefix)
    return reference.head(weights, program.output(steps.hidden[-1], opened.config.hidden_size))


@pytest.fixture(scope="module", params=["checkpoint", "gguf", "written gguf", "parallel"])
def model(request, tmp_path_factory):
    path = GGUF
    if request.param != "gguf":
        kind = {"format": "gguf"} if "gguf" in request.param else {}
        out = tmp_path_factory.mktemp("hrm") / ("model.gguf" if kind else "model")
        path = ouro_edge.export(HRM, out, precision="fp32", calibration=None, **kind).path
    with ouro_edge.load(path, parallel=4 if request.param == "parallel" else 1) as loaded:
        yield loaded


@pytest.mark.parametrize("source", [HRM, GGUF])
@pytest.mark.parametrize("row", [0, 1])
def test_reference(expected, source, row):
    opened = open_checkpoint(source)
    for prefix, name in ((0, "causal"), (12, "prefix12")):
        steps = reference.run(opened.config, opened.weights, expected["input_ids"][row], prefix)
        for step, wanted in enumerate(expected[f"pass_hidden_{name}"][:, row]):
            high, low = np.split(steps.hidden[step], 2, axis=1)
            np.testing.assert_allclose(high if step % 4 == 3 else low, wanted, atol=1e-4)
        np.testing.assert_allclose(
            reference.head(opened.weights, high), expected[f"logits_{name}"][row], atol=1e-4
        )  # fmt: skip
    np.testing.assert_allclose(
        logits(source, expected["input_ids"][row], 24), expected["logits_prefix_all"][row], atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize(("high", "low"), CYCLES)
def test_numbers_of_cycles(expected, tmp_path, high, low):
    source = checkpoint(tmp_path / "model", **cycles(high, low))
    wanted, ids = expected[f"logits_causal_H{high}_L{low}"], expected["input_ids"]
    np.testing.assert_allclose(logits(source, ids[0]), wanted[0], atol=1e-4)
    out = ouro_edge.export(source, tmp_path / "out", precision="fp32", calibration=None).path
    with ouro_edge.load(out) as loaded:
        np.testing.assert_allclose(loaded.forward(ids[1].tolist()).logits, wanted[1], atol=1e-3)
        assert loaded.states(ids[0].tolist()).hidden.shape == (high * (low + 1), 24, 128)


def test_what_the_published_code_says_of_positions_before_a_block_in_the_middle(expected):
    """`logits_mid5_12`: a block of positions 5 to 11, which cannot be asked for here; those before it are causal."""
    np.testing.assert_allclose(expected["logits"], expected["logits_causal"], atol=1e-6)
    middle, causal = expected["logits_mid5_12"], expected["logits_causal"]
    for row, ids in enumerate(expected["input_ids"]):
        np.testing.assert_allclose(logits(HRM, ids)[:5], middle[row, :5], atol=1e-4)
    assert (np.abs(middle - causal).max(axis=2)[:, 5:] > 1e-3).all()


@pytest.mark.parametrize("row", [0, 1])
def test_logits_and_greedy_tokens(expected, model, row):
    ids = expected["input_ids"][row].tolist()
    found = model.forward(ids)
    np.testing.assert_allclose(found.logits, expected["logits_causal"][row], atol=1e-3)
    assert found.depth.tolist() == [8] * 24
    *tokens, done = model.generate(ids[:12], max_tokens=12, stop_ids=())
    assert [token.id for token in tokens] == expected["greedy_default"][row].tolist()
    assert done.usage.loops_saved == 0


def test_fewer_cycles_by_force(expected, model):
    """After the first H the state is that of a model with one cycle; a smaller number runs to there as well."""
    ids = expected["input_ids"][0].tolist()
    for depth in (3, 4):
        found = model.forward(ids, exit=ouro_edge.FixedDepth(depth, force=True))
        np.testing.assert_allclose(found.logits, expected["logits_causal_H1_L3"][0], atol=1e-3)
        assert found.depth.tolist() == [4] * 24
    with pytest.raises(RequestError, match="trained for 8 loops only"):
        model.forward(ids, exit=ouro_edge.FixedDepth(4))


def test_split_tensors_and_the_older_config(expected, tmp_path):
    legacy = json.loads((HRM / "config.legacy.json").read_text())
    assert from_hf(legacy) == from_hf(hf())
    source = checkpoint(tmp_path / "split", split(load_file(HRM / "model.safetensors")))
    shutil.copy(HRM / "config.legacy.json", source / "config.json")
    np.testing.assert_allclose(logits(source, expected["input_ids"][0]), expected["logits_causal"][0], atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_other_sizes(tmp_path, tied):
    """Three layers per stack, heads wider than hidden / heads and of no multiple of 16, with and without a head."""
    rng, layers, c, f, v, q = np.random.default_rng(3), 3, 48, 72, 90, 3 * 24
    changes = {
        "num_layers_per_stack": layers, "hidden_size": c, "intermediate_size": f, "vocab_size": v, "head_dim": 24,
        "num_attention_heads": 3, "num_key_value_heads": None, "tie_word_embeddings": tied, "embedding_scale": 5.5,
        "num_hidden_layers": layers * 2 * 3, "H_cycles": 2, "L_cycles": 2,
    }  # fmt: skip

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(v, c), "model.z_L_init": matrix(c)}
    if not tied:
        tensors["lm_head.weight"] = matrix(v, c)
    for stack in "LH":
        for i in range(layers):
            layer = f"model.{stack}_module.layers.{i}."
            tensors[f"{layer}attn.gqkv_proj.weight"], tensors[f"{layer}attn.o_proj.weight"] = (
                matrix(4 * q, c),
                matrix(c, q),
            )
            tensors[f"{layer}mlp.gate_up_proj.weight"], tensors[f"{layer}mlp.down_proj.weight"] = (
                matrix(2 * f, c),
                matrix(c, f),
            )
    source = checkpoint(tmp_path / "model", tensors, **changes)
    ids = rng.integers(0, v, 40)
    wanted = {prefix: logits(source, ids, prefix) for prefix in (0, 1, 17, 40)}
    for format in ("bundle", "gguf"):
        out = tmp_path / ("out.gguf" if format == "gguf" else "out")
        ouro_edge.export(source, out, precision="fp32", calibration=None, format=format)
        with ouro_edge.load(out) as loaded:
            for prefix, expected in wanted.items():
                np.testing.assert_allclose(loaded.forward(ids.tolist(), prefix=prefix).logits, expected, atol=1e-3)


def test_config_is_written_as_it_is_read():
    config = from_hf(hf())
    assert from_hf(to_hf(config)) == config
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    whole = from_hf(hf(embedding_scale=8))
    assert whole == config and type(whole.embedding_scale) is float  # also in a GGUF file
    assert from_hf(hf(embedding_scale=None)).embedding_scale == 8.0  # 1 / initializer_range
    assert from_hf(hf(H_cycles=None, L_cycles=None)).cycles == (2, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 12}, "num_hidden_layers = 12 and 2 layers per stack; expected 16"),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ({"H_cycles": 0}, "H cycles is 0"),
        ({"num_layers_per_stack": True}, "layers per stack is True"),
        ({"prefix_lm": "yes"}, "prefix_lm is 'yes'"),
        ({"embedding_scale": -1.0}, "embedding_scale is -1.0"),
        ({"embedding_scale": None, "initializer_range": None}, "lacks 'embedding_scale'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4}}, "rope_parameters"),
    ],
)
def test_configs_that_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        from_hf(hf(**changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.H_module.layers.1.mlp.down_proj.weight"), "lacks layers.3.down_proj"),
        (lambda t: t.pop("model.z_L_init"), "lacks state_init"),
        (lambda t: t.update({"model.L_module.layers.2.attn.o_proj.weight": np.zeros((64, 64), np.float32)}),
         "does not use: model.L_module.layers.2"),
        (lambda t: t.update({"model.L_module.final_norm.weight": np.ones(64, np.float32)}), "final_norm"),
        (lambda t: t.update({"model.L_module.layers.0.attn.gqkv_proj.weight": np.zeros((192, 64), np.float32)}),
         r"gqkv_proj.weight has shape \[192, 64\]; the config implies 256 rows"),
        (lambda t: t.update({"model.L_module.layers.0.self_attn.q_proj.weight": np.zeros((64, 64), np.float32)}),
         "layers.0.q_proj twice"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(tmp_path, change, says):
    tensors = load_file(HRM / "model.safetensors")
    change(tensors)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(checkpoint(tmp_path / "model", tensors))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hrm_text.hrm.h_cycles", None, "hrm_text.hrm.h_cycles is missing"),
        ("hrm_text.block_count", 4, "block_count is 4; expected 16"),
        ("hrm_text.hrm.prefix_lm", 1, "prefix_lm is 1; expected true or false"),
        ("hrm_text.hrm.l_cycles", 0, "L cycles is 0"),
    ],
)
def test_gguf_headers_that_are_refused(key, value, says):
    header = read_header(SourceFile(GGUF))
    metadata = {**header.metadata, key: value}
    if value is None:
        del metadata[key]
    with pytest.raises(ConfigError, match=says):
        read_config(
            header._replace(metadata=metadata)
            if hasattr(header, "_replace")
            else type(header)(metadata, header.tensors)
        )
