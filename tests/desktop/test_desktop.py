"""The desktop example is started, clicked through and packaged, by a Python that has PySide6 and PyInstaller."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.desktop
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "desktop"
QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("OURO_EDGE_DESKTOP_PYTHON")
    if not found:
        pytest.skip("OURO_EDGE_DESKTOP_PYTHON names no Python with PySide6, PyInstaller and ouro-edge")
    return found


def run(command, platform="offscreen", **environment):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    result = subprocess.run(
        [str(part) for part in command],
        env={**kept, "QT_QPA_PLATFORM": platform, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("display", ["offscreen", "xvfb"])
def test_the_window_is_clicked_through(python, display):
    command = [python, "-W", "error", Path(__file__).with_name("drive.py")]
    if display == "xvfb" and shutil.which("xvfb-run") is None:
        pytest.skip("xvfb-run is not here")
    said = run(["xvfb-run", "-a", *command], "xcb") if display == "xvfb" else run(command)
    assert said.split() == ["answers_and_tints", "a_busy_model_does_not_freeze_the_window_and_stop_stops",
                            "what_goes_wrong_is_said"]  # fmt: skip


def test_the_built_in_model_answers(python):
    assert run([python, EXAMPLE / "ouro_chat.py", "--ask", QUESTION]).strip() == "Cleo"


def test_the_packaged_app_runs_without_python(python, tmp_path):
    places = ["--distpath", tmp_path / "dist", "--workpath", tmp_path / "work"]
    run([python, "-m", "PyInstaller", "--noconfirm", *places, EXAMPLE / "ouro_chat.spec"])
    app = tmp_path / "dist" / "ouro_chat" / "ouro_chat"
    assert run([app, "--ask", QUESTION], PATH="/nonexistent", PYTHONPATH="").strip() == "Cleo"
    names = {part.name for part in (app.parent / "_internal").iterdir()}
    assert not {"onnx", "gguf", "huggingface_hub", "torch"} & names
