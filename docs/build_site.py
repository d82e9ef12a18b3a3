"""Builds the documentation site: `make docs`, or `python docs/build_site.py` in an environment with the extra docs.

Collects the pages of the repository in build/site-pages: docs/, README.md as the home page, the documents of the root,
and the references that are generated from docstrings and from the help of the commands. Links between them are
rewritten; a link to a file that is not a page becomes its name in code. mkdocs then checks all links (strict).
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ouro_edge
from ouro_edge.cli.reference import commands_page

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "site-pages"
# Pages whose place on the site is not their place in docs/.
MOVED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/desktop/README.md": "examples/desktop.md",
    "examples/genai/README.md": "examples/genai.md",
}
# Every public name once: tests/test_site.py.
REFERENCE = {
    "Loading": ["load", "LoadOptions", "ModelConfig", "Progress"],
    "Models": ["Model", "Forward", "Score", "Tokenizer"],
    "Answers": ["Token", "Done", "Event", "Usage", "Timings", "GenerationOptions", "Sampler", "Constraint", "Cancel"],
    "Exit rules": [
        "parse_exit", "format_exit", "ExitPolicy", "ExitThreshold", "FixedDepth", "FullDepth", "ConfidenceThreshold",
        "EntropyThreshold", "DivergenceThreshold", "EntropyChange", "Agreement", "StableChoice", "StateChange",
        "StateTurn", "ExpectedLogits", "LoopBudget",
    ],
    "Sequences": ["TokenSequence", "PrefixCache", "save_sequence", "load_sequence"],
    "Export, checks and fitting": [
        "export", "ExportResult", "WeightCalibration", "verify", "evaluate", "Quality", "Question", "trace",
        "calibrate", "Calibration", "fit_gate", "GateFit",
    ],
    "Errors": [
        "OuroEdgeError", "RequestError", "BundleError", "CheckpointError", "ConfigError", "ExportError", "HubError",
        "TemplateError", "VerificationError", "Cancelled", "ContextOverflowError", "NoGateError", "NoTokenizerError",
    ],
}  # fmt: skip
TESTING = ["ouro_edge.testing.MockModel", "ouro_edge.testing.MeteredBackend"]


def sources() -> dict[str, str]:
    """Path in the repository -> path on the site, for every document."""
    pages = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    return {**pages, **MOVED}


def with_links(text: str, source: str, pages: dict[str, str]) -> str:
    """The text of a page with its links and images as they are on the site."""
    here = posixpath.dirname(pages[source])

    def link(found: re.Match[str]) -> str:
        mark, label, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in pages:
            place = pages[path]
        elif path.startswith("docs/") and (ROOT / path).is_file() and not path.endswith(".py"):
            place = path.removeprefix("docs/")
        elif mark or not (ROOT / path).exists():
            raise SystemExit(f"{source} refers to {target}, which is not in {'docs/' if mark else 'the repository'}")
        else:
            return label if label.startswith("`") else f"{label} (`{path}`)" if label not in path else f"`{path}`"
        return f"{mark}[{label}]({posixpath.relpath(place, here or '.')}{anchor or ''})"

    return re.sub(r"(!?)\[([^\]\n]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def reference_page() -> str:
    """The page of the Python API: one directive of mkdocstrings for each public name."""
    parts = ["# Python API\n\nEvery public name of `ouro_edge`. [Examples](api.md) show them in use.\n"]
    for title, names in REFERENCE.items():
        parts.append(f"## {title}\n")
        parts += [_directive(f"ouro_edge.{ouro_edge._HOME_OF[name]}.{name}", f"ouro_edge.{name}") for name in names]
    parts.append("## Testing\n")
    parts += [_directive(path, path) for path in TESTING]
    return "\n".join(parts)


def _directive(path: str, name: str) -> str:
    return f'::: {path}\n    options:\n      heading: "{name}"\n      toc_label: "{name.rpartition(".")[2]}"\n'


def collect() -> None:
    """Write all pages to build/site-pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = sources()
    for source, place in pages.items():
        path = PAGES / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(with_links((ROOT / source).read_text(encoding="utf-8"), source, pages), encoding="utf-8")
    for asset in (ROOT / "docs").iterdir():
        if asset.suffix in (".png", ".svg", ".css", ".js"):
            shutil.copy(asset, PAGES)
    (PAGES / "cli.md").write_text(commands_page(), encoding="utf-8")
    (PAGES / "reference.md").write_text(reference_page(), encoding="utf-8")


def main() -> None:
    collect()
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(ROOT / "mkdocs.yml")]
    raise SystemExit(subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode)


if __name__ == "__main__":
    main()
