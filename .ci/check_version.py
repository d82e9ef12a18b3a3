"""Checks that a tag, the package, its registration for optimum, the changelog and the citation name one version."""

import re
import sys
from pathlib import Path

EXPECTED = {
    "ouro_edge/version.py": '__version__ = "{}"',
    "packaging/optimum-ouro-edge/pyproject.toml": 'version = "{}"',
    "CHANGELOG.md": "## {}",
    "CITATION.cff": "version: {}",
}


def main() -> None:
    if len(sys.argv) != 2 or not (found := re.fullmatch(r"v(\d+\.\d+\.\d+\w*)", sys.argv[1])):
        raise SystemExit(f"the tag is {sys.argv[1:]}; expected one such as v1.2.3")
    version = found[1]
    for name, line in EXPECTED.items():
        text = Path(name).read_text(encoding="utf-8")
        if not re.search(rf"^{re.escape(line.format(version))}(?!\w|\.\d)", text, re.M):
            raise SystemExit(f"{name} has no line {line.format(version)!r}, which the tag {sys.argv[1]} requires")
    if "not released" in Path("CHANGELOG.md").read_text(encoding="utf-8"):
        raise SystemExit("CHANGELOG.md says that the version is not released: give it a date")
    print(version)


main()
