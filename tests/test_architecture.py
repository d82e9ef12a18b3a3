"""The laws of the package: imports point down only, its face is explicit, and importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ouro_edge

PACKAGE = Path(ouro_edge.__file__).parent
# A room may import itself and what stands before it in a lower row; rooms in one row are strangers.
ROWS = [
    {"cpus", "errors", "version"},
    {"config", "cache"},
    {"weights", "tuned"},
    {"reference", "quant", "hub"},
    {"manifest"},
    {"bundle"},
    {"exit_gate", "kv_ranges", "many_rows_files"},
    {"export", "runtime"},
    {"evaluation", "prefill"},
    {"loading"},
    {"gates", "measure", "terminal", "server", "integrations", "testing"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    """The room that a file belongs to."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Rooms and packages imported anywhere in a file, also inside functions; those for type checkers do not count."""
    tree = ast.parse(module.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "ouro_edge" else {node.module}
            )
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_down(module):
    room = room_of(module)
    if room == "__init__":
        return  # the face: names are loaded lazily
    for name in imports(module):
        if name.startswith("ouro_edge."):
            other = name.split(".")[1]
            assert other == room or LEVEL[other] < LEVEL[room], f"{room} imports {other}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("onnxruntime", {"runtime"}),
        ("onnx", {"export", "integrations"}),
        ("gguf", {"export"}),
        ("safetensors", {"export"}),
        ("tokenizers", {"runtime", "export"}),
        ("huggingface_hub", {"hub"}),
        ("click", {"cli"}),
        ("rich", {"cli", "terminal"}),
        ("prompt_toolkit", {"terminal"}),
        ("starlette", {"server"}),
        ("uvicorn", {"server"}),
        ("llguidance", {"server"}),
        ("optimum", {"integrations"}),
        ("llm", {"integrations"}),
        ("pydantic", {"integrations"}),
        ("torch", set()),
        ("transformers", set()),
        ("pickle", set()),
    ],
)
def test_who_may_know_a_library(library, rooms):
    users = {room_of(m) for m in MODULES if any(name.split(".")[0] == library for name in imports(m))}
    assert users <= rooms


def test_files_stay_small():
    assert {str(m.relative_to(PACKAGE)): n for m in MODULES if (n := len(m.read_text().splitlines())) > 270} == {}


def test_every_module_opens_with_what_it_knows():
    for module in MODULES:
        assert ast.get_docstring(ast.parse(module.read_text())), module


def test_the_face_is_sorted_and_complete():
    names = [name for name in ouro_edge.__all__ if name != "__version__"]
    assert names == sorted(names)
    assert set(ouro_edge.__all__) == set(ouro_edge._HOME_OF) | {"__version__"}
    for name in ouro_edge.__all__:
        assert getattr(ouro_edge, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ouro_edge.nonsense


def test_importing_is_cheap_and_has_no_effects():
    code = (
        "import os, sys; before = dict(os.environ); import ouro_edge\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'gguf', 'click', 'torch', 'tokenizers', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert dict(os.environ) == before\n"
        "ouro_edge.load, ouro_edge.Sampler, ouro_edge.Model\n"
        "assert not {'onnx', 'gguf', 'click', 'torch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_telemetry_is_off_before_onnxruntime_is_imported(bundle_of):
    code = (
        "import os, ouro_edge, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "ouro_edge.load(sys.argv[1]); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "assert not {'onnx', 'gguf', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle_of())], check=True)
