"""benchmarks/off_grid.py: the checkpoint has the function of its source, and other weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from models import write_checkpoint

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.export.open_checkpoint import open_checkpoint

SOURCE = Path(__file__).parents[1] / "benchmarks" / "off_grid.py"


@pytest.fixture(scope="module")
def off_grid():
    spec = importlib.util.spec_from_file_location("off_grid", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tied", [True, False])
def test_the_function_is_the_same_and_no_matrix_is(off_grid, tmp_path, tied):
    source = write_checkpoint(tmp_path / "llama", model_type="llama", tie_word_embeddings=tied)
    ouro_edge.export(source, tmp_path / "a.gguf", precision="f32")
    off_grid.write(tmp_path / "a.gguf", tmp_path / "out")
    before, after = open_checkpoint(tmp_path / "a.gguf"), open_checkpoint(tmp_path / "out")
    assert before.config == after.config
    ids = np.arange(40) % before.config.vocab_size
    states = [reference.run(c.config, c.weights, ids).hidden for c in (before, after)]
    np.testing.assert_allclose(states[1], states[0], rtol=1e-3, atol=1e-4)
    changed = {
        name.split(".")[-1] for name in before.weights if not np.allclose(before.weights[name], after.weights[name])
    }
    assert changed == set(off_grid.PUBLISHED)


def test_a_looped_model_is_refused(off_grid, tmp_path):
    source = write_checkpoint(tmp_path / "ouro")
    ouro_edge.export(source, tmp_path / "a.gguf", precision="f32")
    with pytest.raises(SystemExit, match="expected a Llama model"):
        off_grid.write(tmp_path / "a.gguf", tmp_path / "out")
