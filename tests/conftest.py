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

_RAN = pytest.StashKey[set[str]]()  # markers of tests that passed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", metavar="MARKER", help="fail unless a test with this marker has run")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call" and call.excinfo is None:
        item.config.stash.setdefault(_RAN, set()).update(mark.name for mark in item.iter_markers())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--require`, a whole tier that is skipped because its programs are missing is a failure, not a success."""
    marker = session.config.getoption("--require")
    if marker and marker not in session.config.stash.get(_RAN, set()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\nno test of the tier {marker!r} has run: what it needs is not installed", red=True)


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
