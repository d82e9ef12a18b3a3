"""The laws of the package: imports point down only, its face is explicit, and importing it costs nothing."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ouro_edge

PACKAGE = Path(ouro_edge.__file__).parent
# Each list goes from the bottom up. A node (a package, or a module beside packages) may import itself and nodes that
# stand in a lower row of its list; nodes in one row must not import each other.
ROWS: dict[str, list[set[str]]] = {
    "": [
        {"errors", "version"},
        {"arch"},
        {"system"},
        {"quant"},
        {"bundle"},
        {"export", "runtime"},
        {"fitting", "evaluation"},
        {"prefill_weights", "convert"},
        {"cached_export"},
        {"loading"},
        {"measure", "terminal", "server", "integrations", "testing"},
        {"cli"},
        {"__main__"},
    ],
    "export": [
        {"checkpoint", "model_card", "data_file", "graphs", "output_directory", "raven_tensors"},
        {"gguf", "prefill_copy"},
        {"sentencepiece", "tensor_names"},
        {"huggingface", "exporter", "batched_block", "float_activations"},
        {"open_checkpoint"},
        {"hf"},
    ],
    "runtime": [
        {"checks", "events"},
        {"backend", "exits", "text", "option_table"},
        {"sampling", "options"},
        {"sequence"},
        {"request", "forward", "async_bridge", "generate_many"},
        {"make_token", "forward_model", "asynchronous"},
        {"speculation"},
        {"generate"},
        {"model"},
        {"open_model"},
        {"saved"},
    ],
    "server": [
        {"limits"},
        {"http"},
        {"options", "queue"},
        {"metrics", "merge"},
        {"engine"},
        {"openai", "listen"},
        {"responses"},
        {"handlers"},
        {"app", "batch"},
        {"workers"},
    ],
    "terminal": [
        {"settings", "commands"},
        {"conversation"},
        {"display"},
        {"input", "saved"},
        {"repl"},
        {"start"},
    ],
}
MODULES = {
    ".".join(("ouro_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_FILES = 15  # Python files in one package; the command line has a file for each command


def imported_names(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, also inside functions; those for type checkers do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_modules(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    names = imported_names(MODULES[module])
    return ({name if name in MODULES else name.rpartition(".")[0] for name in names} & set(MODULES)) - {module}


def node_below(package: str, module: str) -> str | None:
    """The child of a package that a module belongs to; None for the package's own __init__ and modules outside it."""
    prefix = "ouro_edge." + (f"{package}." if package else "")
    return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None


@pytest.mark.parametrize("package", ROWS)
def test_imports_point_down(package: str) -> None:
    rank = {node: row for row, nodes in enumerate(ROWS[package]) for node in nodes}
    wrong = set()
    for module in MODULES:
        node = node_below(package, module)
        if node is None:
            continue
        assert node in rank, f"{package or 'ouro_edge'}.{node} has no place in ROWS"
        for other in imported_modules(module):
            target = node_below(package, other)
            if target is not None and target != node and rank[target] >= rank[node]:
                wrong.add(f"{module} imports {other}")
    assert wrong == set()


def test_no_cycle_of_files() -> None:
    left = {module: imported_modules(module) for module in MODULES}
    while removable := [module for module, needs in left.items() if not needs & set(left)]:
        for module in removable:
            del left[module]
    assert left == {}, "these files import each other in a circle, or import one that does"


def test_packages_are_small_and_have_a_docstring() -> None:
    for folder in sorted({path.parent for path in MODULES.values()}):
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"
        if folder.name != "cli":
            assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_other_packages_import_only_what_a_package_lists() -> None:
    """`__all__` of a package: the modules and names that code outside the package may import."""
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py" and module != "ouro_edge"}
    listed = {package: set(importlib.import_module(package).__all__) for package in packages}
    wrong = set()
    for module in MODULES:
        for other in imported_modules(module):
            package, _, child = other.rpartition(".")
            while package in packages:
                if module != package and not module.startswith(package + ".") and child not in listed[package]:
                    wrong.add(f"{module} imports {package}.{child}")
                package, _, child = package.rpartition(".")
    assert wrong == set()
    for package, names in listed.items():
        for name in names:
            assert f"{package}.{name}" in MODULES or hasattr(importlib.import_module(package), name), (package, name)


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("onnxruntime", {"runtime"}),
        ("onnx", {"export"}),
        ("gguf", {"export"}),
        ("safetensors", {"export"}),
        ("tokenizers", {"runtime", "export"}),
        ("huggingface_hub", {"system"}),
        ("click", {"cli"}),
        ("rich", {"cli", "terminal"}),
        ("prompt_toolkit", {"terminal"}),
        ("starlette", {"server"}),
        ("uvicorn", {"server"}),
        ("llguidance", {"server"}),
        ("optimum", {"integrations"}),
        ("llm", {"integrations"}),
        ("lm_eval", {"integrations"}),
        ("pydantic", {"integrations"}),
        ("ray", {"integrations"}),
        ("pyarrow", {"integrations"}),
        ("torch", set()),
        ("transformers", set()),
        ("pickle", set()),
    ],
)
def test_which_packages_may_import_a_library(library: str, packages: set[str]) -> None:
    users = {
        node_below("", module)
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imported_names(path))
    }
    assert users <= packages


def test_files_stay_small() -> None:
    assert {str(path): n for path in MODULES.values() if (n := len(path.read_text().splitlines())) > 270} == {}


def test_tests_do_not_replace_private_names() -> None:
    allowed = {"test_speculation.py": 1}  # its comment gives the reason
    found = Counter(
        path.name
        for path in Path(__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"
        for value in node.args[:2]
        if isinstance(value, ast.Constant) and re.match(r"_(?!_)", str(value.value).rpartition(".")[2])
    )
    assert found == allowed


def test_every_module_has_a_docstring() -> None:
    for path in MODULES.values():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_public_names_are_sorted_and_complete() -> None:
    names = [name for name in ouro_edge.__all__ if name != "__version__"]
    assert names == sorted(names)
    assert set(ouro_edge.__all__) == set(ouro_edge._HOME_OF) | {"__version__"}
    for name in ouro_edge.__all__:
        assert getattr(ouro_edge, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ouro_edge.nonsense


def test_importing_is_cheap_and_has_no_effects() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import ouro_edge\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'gguf', 'click', 'torch', 'tokenizers', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert dict(os.environ) == before\n"
        "ouro_edge.load, ouro_edge.Sampler, ouro_edge.Model\n"
        "assert not {'onnx', 'gguf', 'click', 'torch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_telemetry_is_off_before_onnxruntime_is_imported(bundle_of) -> None:
    code = (
        "import os, ouro_edge, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "ouro_edge.load(sys.argv[1]); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "assert not {'onnx', 'gguf', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle_of())], check=True)
