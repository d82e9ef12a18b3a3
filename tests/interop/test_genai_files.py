"""The example for genai: its graph in plain onnxruntime against the bundle it was made from, and genai's config."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from genai_example import CONFIG_FILE, GRAPH_FILE, SCRIPT, write_genai

import ouro_edge
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import BundleError

IDS = [5, 77, 3, 41, 60, 8, 19, 90]


@pytest.fixture
def door(bundle_of, tmp_path):
    """A copy of a bundle with genai's files in it."""

    def make(*arguments, **options):
        path = shutil.copytree(bundle_of(*arguments, **options), tmp_path / "model")
        assert write_genai(open_bundle(path)) == path / CONFIG_FILE
        return path

    return make


def run(session, ids, past):
    """Logits [T, V] of ids after a past, and the new past."""
    total = len(ids) + next(iter(past.values())).shape[2]
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, total), np.int64)}
    logits, *present = session.run(None, {**inputs, **past})
    return logits[0], dict(zip(past, present, strict=True))


def agrees(path):
    """All positions at once, and the last one by one on a past, give the bundle's logits at full depth."""
    with ouro_edge.load(path) as model:
        config, want = model.config, model.forward(IDS, exit=ouro_edge.FullDepth()).logits
    session = onnxruntime.InferenceSession(path / GRAPH_FILE, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs() if value.name.startswith("past.")]
    assert len(names) == 2 * config.loops * config.num_layers
    empty = np.zeros((1, config.num_kv_heads, 0, cache_head_dim(config)), np.float32)
    past = dict.fromkeys(names, empty)
    np.testing.assert_allclose(run(session, IDS, past)[0], want, atol=1e-4)
    rows, past = run(session, IDS[:-2], past)
    np.testing.assert_allclose(rows, want[:-2], atol=1e-4)
    for i in (-2, -1):
        rows, past = run(session, [IDS[i]], past)
        np.testing.assert_allclose(rows[0], want[i], atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", {}), ("int8", {}), ("int4", {}), ("int4", {"block_size": 32, "symmetric": False})],
)
def test_every_precision(door, precision, options):
    agrees(door(precision=precision, **options))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("changes", [{"head_dim": 12}, {"model_type": "llama", "tie_word_embeddings": True}])
def test_every_architecture(door, checkpoint_of, changes, precision):
    agrees(door(checkpoint_of(**changes), precision))


def test_weights_stay_where_they_are(door, bundle_of):
    path = door(precision="int4")
    added = {file.name for file in path.iterdir()} - {file.name for file in bundle_of(precision="int4").iterdir()}
    assert added == {GRAPH_FILE, CONFIG_FILE}
    assert (path / GRAPH_FILE).stat().st_size < (path / "model.onnx.data").stat().st_size / 3


def test_config(door):
    config = json.loads((door() / CONFIG_FILE).read_text())
    decoder = config["model"]["decoder"]
    assert decoder["num_hidden_layers"] == 12 and decoder["head_size"] == 16
    assert config["model"]["eos_token_id"] == [0, 2]
    assert config["search"]["max_length"] == config["model"]["context_length"] == 512


def test_a_place_that_cannot_be_written_is_one_line(bundle_of, tmp_path):
    path = shutil.copytree(bundle_of(), tmp_path / "model")
    (path / CONFIG_FILE).mkdir()
    with pytest.raises(BundleError, match=f"{CONFIG_FILE} cannot be written") as error:
        write_genai(open_bundle(path))
    assert "\n" not in str(error.value)
    assert not list(path.glob("*.partial"))


def run_script(model):
    return subprocess.run([sys.executable, SCRIPT, model], capture_output=True, text=True)


def test_the_script_writes_both(bundle_of, tmp_path):
    path = shutil.copytree(bundle_of(), tmp_path / "model")
    for _ in range(2):  # again, over its own output
        done = run_script(path)
        assert (done.returncode, done.stdout.strip()) == (0, str(path / CONFIG_FILE)), done.stderr
    assert (path / GRAPH_FILE).is_file()


def test_what_is_not_an_exported_model_is_one_line(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
