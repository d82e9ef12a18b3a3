"""What the documentation site collects, and what the forge's workflows call."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import ouro_edge
from ouro_edge.cli import main
from ouro_edge.cli.reference import commands_page

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """docs/build_site.py as a module."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_once(site: ModuleType) -> None:
    names = [name for group in site.REFERENCE.values() for name in group]
    assert sorted(names) == sorted(set(ouro_edge.__all__) - {"__version__"})


def test_the_reference_has_every_command() -> None:
    headings = re.findall(r"^## ouro-edge (.+)$", commands_page(), re.M)
    assert headings == main.list_commands(None)


def test_every_page_is_in_the_navigation(site: ModuleType) -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted({*site.sources().values(), "cli.md", "reference.md"})


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "[a](docs/api.md#x) ![b](docs/page.png)", "[a](api.md#x) ![b](page.png)"),
        ("docs/api.md", "[a](../README.md) [b](https://x.org/y.md)", "[a](index.md) [b](https://x.org/y.md)"),
        ("examples/desktop/README.md", "[a](../../docs/api.md)", "[a](../api.md)"),
        ("README.md", "[LICENSE](LICENSE) [text](Makefile)", "`LICENSE` text (`Makefile`)"),
    ],
)
def test_links_are_rewritten(site: ModuleType, source: str, text: str, expected: str) -> None:
    assert site.with_links(text, source, site.sources()) == expected


@pytest.mark.parametrize("text", ["[a](docs/missing.md)", "![a](LICENSE)"])
def test_a_broken_link_is_an_error(site: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match=r"README\.md refers to"):
        site.with_links(text, "README.md", site.sources())


def test_columns_of_tables_have_names(site: ModuleType) -> None:
    """Screen readers read a column's name before each of its cells."""
    unnamed = []
    for source in site.sources():
        lines = (ROOT / source).read_text(encoding="utf-8").splitlines()
        for number, (header, rule) in enumerate(itertools.pairwise(lines), 1):
            if re.fullmatch(r"\|( *:?-+:? *\|)+", rule) and not all(map(str.strip, header[1:-1].split("|"))):
                unnamed.append(f"{source}:{number}")
    assert unnamed == []


def test_every_family_is_tested_on_arm64() -> None:
    """.ci/test_arm64.sh names tests that exist, and among them one of the golden data of each family."""
    script = (ROOT / ".ci" / "test_arm64.sh").read_text(encoding="utf-8")
    tests = re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", script)
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in tests}
    assert [name for path, name in tests if name and f"def {name}(" not in texts[path]] == []
    families = {path.name for path in (ROOT / "tests" / "golden").iterdir() if path.is_dir()} - {"ouro-tiny"}
    assert {name for name in families if not any(f'"{name}"' in text for text in texts.values())} == set()
    assert "tests/runtime/test_golden.py" in texts  # of ouro-tiny


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_call_targets_of_the_makefile(workflow: Path) -> None:
    """What a job runs can be run on a developer's machine too."""
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    data = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert data["permissions"] == {"contents": "read"}
    for job in data["jobs"].values():
        assert "timeout-minutes" in job or "uses" in job
        matrix = job.get("strategy", {}).get("matrix", {})
        tiers = [entry["tier"] for entry in matrix.get("include", ()) if "tier" in entry]
        for command in (step["run"] for step in job.get("steps", ()) if "run" in step):
            if command.startswith(("sudo apt-get", "gh release")):
                continue
            program, *words = command.replace('sudo env "PATH=$PATH" ', "").split()
            if "test-${{ matrix.tier }}" in command:
                words = [f"test-{tier}" for tier in tiers]
            assert program == "make"
            assert {word for word in words if "=" not in word} <= targets
