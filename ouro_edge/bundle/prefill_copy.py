"""The prefill copy on disk: the block with one byte per weight, for long prompts; `export` writes it."""

from __future__ import annotations

from pathlib import Path

from ouro_edge.arch.json_object import read_json_object
from ouro_edge.arch.loop_program import BLOCK
from ouro_edge.arch.weights import block_tensors
from ouro_edge.bundle.bundle import Bundle, GraphFile
from ouro_edge.bundle.directory import DATA_FILE, graph_file, sha256
from ouro_edge.errors import BundleError

RECORD_FILE = "prefill_copy.json"
PROBE_FILE = "probe.onnx"  # tests whether this CPU multiplies uint8 and int8 without saturation
VERSION = 4


def prefill_copy_bytes(bundle: Bundle) -> int:
    """Size of the block's quantised matrices at one byte per weight; 0 for a model that computes in float32."""
    tensors = (bundle.tensors[name] for name in block_tensors(bundle.tensors))
    return sum(tensor.shape[0] * tensor.shape[1] for tensor in tensors if tensor.scheme is not None)


def prefill_graph(directory: Path, kv: str, stack: str = BLOCK) -> GraphFile:
    """The prefill graph of a stack over a KV cache of type `kv`."""
    return GraphFile(directory / graph_file(stack, kv), directory / DATA_FILE)


def is_complete(path: Path) -> bool:
    """Whether a directory contains a complete copy: graphs with the right checksums, weights of the right size.

    The weights are not hashed, because that would read a gigabyte at every start. The size is sufficient, as for large
    bundles: a copy is renamed to its final name when it is complete, and never modified after that.
    """
    try:
        record = read_json_object(path / RECORD_FILE, BundleError)
        graphs = record.get("sha256")
        if record.get("version") != VERSION or not isinstance(graphs, dict) or PROBE_FILE not in graphs:
            return False
        same = all(sha256(path / name) == digest for name, digest in graphs.items())
        return same and (path / DATA_FILE).stat().st_size == record.get("size")
    except (BundleError, OSError):
        return False
