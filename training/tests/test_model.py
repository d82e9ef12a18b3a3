"""The torch model against the golden figures of upstream's modelling code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.model import ModelConfig, Ouro, exit_probabilities

REPO = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("OURO_GOLDEN", REPO / "tests" / "golden" / "ouro-tiny"))


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden files at {GOLDEN}; name them in OURO_GOLDEN")
def test_every_loop_matches_upstream() -> None:
    model = Ouro(ModelConfig.from_hf(json.loads((GOLDEN / "config.json").read_text())))
    model.load_state_dict(load_file(GOLDEN / "model.safetensors"), strict=True)
    expected = np.load(GOLDEN / "expected.npz")
    with torch.no_grad():
        states = model.states(torch.from_numpy(expected["input_ids"]))
        for r, h in enumerate(states):
            logits, gate = model.read(h)
            np.testing.assert_allclose(h.numpy(), expected["hidden_steps"][:, :, r], atol=1e-4)
            np.testing.assert_allclose(logits.numpy(), expected[f"logits_step{r + 1}"], atol=1e-4)
            np.testing.assert_allclose(gate.numpy(), expected["gate_logits"][:, :, r], atol=1e-4)


def test_exit_probabilities_are_a_distribution_and_ignore_the_last_gate() -> None:
    gate = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    p = exit_probabilities(gate)
    lam = gate.sigmoid()
    torch.testing.assert_close(p.sum(-1), torch.ones(5))
    torch.testing.assert_close(p[:, 1], lam[:, 1] * (1 - lam[:, 0]))
    torch.testing.assert_close(exit_probabilities(gate + torch.tensor([0.0, 0.0, 0.0, 9.0])), p)
