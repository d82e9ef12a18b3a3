"""Lets onnxruntime-genai run an exported model: a graph with the loops unrolled, and genai's description of it.

Both files lie in the bundle beside its own and use its weights, so one directory serves ouro-edge and genai.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ouro_edge.bundle.added_files import GENAI_CONFIG_FILE, GENAI_GRAPH_FILE
from ouro_edge.bundle.bundle import cache_head_dim
from ouro_edge.errors import BundleError
from ouro_edge.runtime.text.model_text import read_model_text
from ouro_edge.system.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    from ouro_edge.bundle.directory import DirectoryBundle

GRAPH_FILE, CONFIG_FILE = GENAI_GRAPH_FILE, GENAI_CONFIG_FILE


def write_genai(bundle: DirectoryBundle) -> Path:
    """Add genai.onnx and genai_config.json to a bundle, which then runs in both; returns the latter's path.

    BundleError when the files cannot be written.
    """
    from ouro_edge.export.graphs.unrolled_graph import unrolled_graph

    graph = unrolled_graph(bundle).SerializeToString()
    config = json.dumps(genai_config(bundle), indent=2).encode() + b"\n"
    for name, content in ((GRAPH_FILE, graph), (CONFIG_FILE, config)):  # the config last: genai looks for it
        try:
            with atomic_write(bundle.path / name) as file:
                file.write(content)
        except OSError as problem:
            raise BundleError(f"{bundle.path / name} cannot be written: {problem}") from None
    return bundle.path / CONFIG_FILE


def genai_config(bundle: DirectoryBundle) -> dict[str, Any]:
    """genai's description of the graph: a llama of loops x layers layers that answers greedily."""
    config, stop_ids = bundle.config, read_model_text(bundle).stop_ids
    past = {"past_key_names": "past.%d.key", "past_value_names": "past.%d.value"}
    present = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "filename": GRAPH_FILE,
        "head_size": cache_head_dim(config),
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.loops * config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "session_options": {"provider_options": []},
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **past},
        "outputs": {"logits": "logits", **present},
    }
    model = {
        "type": "llama",
        "bos_token_id": config.bos_token_id or 0,
        "eos_token_id": list(stop_ids),
        "pad_token_id": config.pad_token_id or 0,
        "context_length": config.max_positions,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    # One buffer for past and present: the block's attention appends in place.
    search = {"max_length": config.max_positions, "past_present_share_buffer": True, "do_sample": False}
    return {"model": model, "search": search}
