"""optimum's command line, in an environment that has optimum (docs/optimum.md); in others these tests are skipped.

The commands run as a user runs them, so ouro-edge and optimum-ouro-edge must be installed there.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from models import GOLDEN

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.quant import Scheme

pytest.importorskip("optimum.version", reason="optimum is not installed")
pytestmark = pytest.mark.optimum
PROMPT, ANSWER = 12, 24


def optimum_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run optimum-cli with this interpreter."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def schemes(model: Path) -> set[Scheme | None]:
    """How the tensors of an exported model are stored."""
    return {tensor.scheme for tensor in open_bundle(model).manifest.tensors.values()}


def test_export_is_our_export(tmp_path, golden):
    done = optimum_cli("export", "ouro-edge", "-m", GOLDEN, tmp_path / "model", "-p", "fp32", "--no-calibration")
    assert done.returncode == 0, done.stderr
    with ouro_edge.load(tmp_path / "model") as model:
        prompt = golden["input_ids"][0, :PROMPT].tolist()
        events = model.generate(prompt, max_tokens=ANSWER, exit=ouro_edge.ExitThreshold(0.5), stop_ids=())
        ids = [event.id for event in events if isinstance(event, ouro_edge.Token)]
    assert ids == golden["greedy_threshold_0.5_row0"].tolist()


def test_options_reach_the_export(tmp_path):
    out = tmp_path / "model"
    options = ("--block-size", "32", "--asymmetric", "--no-calibration")
    assert optimum_cli("export", "ouro-edge", "-m", GOLDEN, out, *options).returncode == 0
    assert Scheme(4, 32, symmetric=False) in schemes(out)
    assert not (out / "kv_ranges.npy").exists()
    assert optimum_cli("export", "ouro-edge", "-m", GOLDEN, out, "--overwrite").returncode == 0
    assert Scheme(4, 128) in schemes(out)
    assert (out / "kv_ranges.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-m", "no/such/model"), "neither a directory"),
        (("-m", str(GOLDEN), "-p", "int3"), "expected one of int4, int8, fp32"),
        (("-m", str(GOLDEN.parent)), "config.json"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, says):
    done = optimum_cli("export", "ouro-edge", *arguments, tmp_path / "model")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_and_defaults_are_those_of_our_command():
    from ouro_edge.cli.export import command
    from ouro_edge.integrations.optimum_command import OuroEdgeExportCommand

    parser = ArgumentParser(add_help=False)
    OuroEdgeExportCommand.parse_args(parser)
    given = vars(parser.parse_args(["-m", "SRC", "OUT"]))
    assert given.pop("model") == "SRC" and given.pop("output") == Path("OUT")
    ours = command.make_context("export", ["SRC", "OUT"]).params
    ours["precision"] = ours["precision"] or "int4"  # ours depends on what is written: a directory
    assert given == {name: ours[name] for name in given}

    names = {name for action in parser._actions for name in action.option_strings} - {"-m", "--model"}
    assert names <= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_optimum_cli_still_starts_at_once():
    code = (
        "import sys; sys.argv = ['optimum-cli', 'export', '--help']\n"
        "from optimum.commands.optimum_cli import main\n"
        "try: main()\n"
        "finally: print(sorted(set(sys.modules) & {'numpy', 'onnx', 'onnxruntime', 'torch', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ouro-edge" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
