"""Names of the files that may be added to a finished bundle, and so are not in its manifest.

They can be replaced at any time: KV ranges, a fitted gate, and the files that onnxruntime-genai needs.
"""

from __future__ import annotations

from ouro_edge.bundle.fitted_gate import GATE_FILE
from ouro_edge.bundle.kv_ranges import RANGES_FILE, RECORD_FILE

GENAI_GRAPH_FILE, GENAI_CONFIG_FILE = "genai.onnx", "genai_config.json"
ADDED_FILES = (RECORD_FILE, RANGES_FILE, GATE_FILE, GENAI_GRAPH_FILE, GENAI_CONFIG_FILE)
