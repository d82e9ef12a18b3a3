"""Prints constraints for pip: every dependency of pyproject.toml at its lower bound."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
needed = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
print("\n".join(re.sub(r">=([\d.]+).*", r"==\1", need) for need in needed))
