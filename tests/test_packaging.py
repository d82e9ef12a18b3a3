"""The distributions are built as a user's pip builds them, and contain only what belongs to them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ouro_edge

ROOT = Path(__file__).parents[1]
OPTIMUM = ROOT / "packaging" / "optimum-ouro-edge"


def built_wheel(project: Path, out: Path) -> Path:
    """The wheel of a project, built by hatchling (extra `dev`) without a network."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    [wheel] = out.iterdir()
    return wheel


def files_of(wheel: Path) -> list[str]:
    """The files of a wheel without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_wheel_contains_only_the_package(tmp_path):
    files = files_of(built_wheel(ROOT, tmp_path / "dist"))
    assert {name.split("/")[0] for name in files} == {"ouro_edge"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "ouro_edge").rglob("*.py")}
    assert sources | {"ouro_edge/nano/model.onnx", "ouro_edge/py.typed"} <= set(files)


def test_the_wheel_for_optimum_contains_only_the_registration(tmp_path):
    assert files_of(built_wheel(OPTIMUM, tmp_path / "dist")) == ["optimum/commands/register/register_ouro_edge.py"]


def test_the_extra_for_optimum_installs_the_registration():
    ours, theirs = project(ROOT), project(OPTIMUM)
    assert ours["optional-dependencies"]["optimum"] == [theirs["name"]] == ["optimum-ouro-edge"]
    assert theirs["version"] == ouro_edge.__version__
    assert [need.split(">=")[0] for need in theirs["dependencies"]] == ["ouro-edge", "optimum"]
