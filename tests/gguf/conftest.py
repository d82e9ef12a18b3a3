"""The golden checkpoint as config and weights."""

from __future__ import annotations

import pytest
from gguf_files import ConfigAndWeights
from models import GOLDEN

from ouro_edge.export.open_checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def golden_model() -> ConfigAndWeights:
    checkpoint = open_checkpoint(GOLDEN)
    return checkpoint.config, {name: checkpoint.weights[name] for name in checkpoint.weights}
