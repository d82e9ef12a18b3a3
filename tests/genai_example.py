"""examples/genai/export_genai.py as a module; it is not part of the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "genai" / "export_genai.py"

_spec = importlib.util.spec_from_file_location("export_genai", SCRIPT)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
CONFIG_FILE, GRAPH_FILE, write_genai = _module.CONFIG_FILE, _module.GRAPH_FILE, _module.write_genai
