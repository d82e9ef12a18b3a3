"""Checkpoints written by `export --format hf`, opened by transformers; skipped where it is not installed.

The class is transformers' own Llama. Ouro's and Nanbeige's code is on the hub, so for these
`tests/export/test_huggingface_writer.py` compares names, types and bits with the checkpoints that it made.
"""

from __future__ import annotations

import numpy as np
import pytest
from models import oracle, write_checkpoint

import ouro_edge

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.optimum
IDS = [5, 17, 33, 2, 60, 44, 9]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("precision", "dtype"), [(None, None), ("int4", None), ("int8", "bfloat16")])
def test_logits_are_those_of_the_reference(precision, dtype, tied, tmp_path):
    source = write_checkpoint(tmp_path / "source", model_type="llama", tie_word_embeddings=tied)
    if precision is not None:
        ouro_edge.export(source, tmp_path / "bundle", precision=precision, block_size=16, calibration=None)
        source = tmp_path / "bundle"
    out = tmp_path / "out"
    ouro_edge.export(source, out, format="hf", dtype=dtype)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(loading.values()), loading  # no missing, unexpected or mismatched tensors
    assert model.dtype == getattr(torch, dtype or "float32")
    with torch.no_grad():
        logits = model.float()(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits, oracle(out, IDS)[0][-1], atol=2e-5 * np.abs(logits).max())
