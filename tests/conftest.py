"""Fixtures of the whole suite: the golden data, small random models, and bundles made from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from models import GOLDEN, write_checkpoint

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Bundles = Callable[..., Path]

# No test depends on the clock: a deadline fails on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """The arrays that the published modelling code made for `ouro-tiny`."""
    with np.load(GOLDEN / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Export a checkpoint directory once a session: bundle_of(checkpoint, "int4", block_size=32)."""
    from ouro_edge.export.exporter import export_bundle
    from ouro_edge.export.open_checkpoint import open_checkpoint
    from ouro_edge.quant import preset

    made: dict[object, Path] = {}

    def make(checkpoint: Path = GOLDEN, precision: str = "fp32", **options: object) -> Path:
        key = (checkpoint, precision, tuple(sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("bundle") / "model"
            export_bundle(open_checkpoint(checkpoint), made[key], preset(precision, **options))
        return made[key]

    return make


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The published GGUF file of SmolLM2-135M-Instruct; tests that need it are skipped where it is not."""
    file = Path(os.environ.get("OURO_EDGE_SMOLLM2", ".cache/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not file.is_file():
        pytest.skip(f"{file} is not here: run make smollm2, or set OURO_EDGE_SMOLLM2")
    return file


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random checkpoint once a session; keywords change fields of its config."""
    made: dict[object, Path] = {}

    def make(**changes: object) -> Path:
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **changes)
        return made[key]

    return make
