"""Where the block for calls of many rows lies on disk: made by `export`, opened by `runtime`. Knows the bundle."""

from __future__ import annotations

from pathlib import Path

from ouro_edge.arch.config import read_json_object
from ouro_edge.bundle.bundle import BLOCK_FILES, DATA_FILE, Bundle, sha256
from ouro_edge.errors import BundleError

RECORD_FILE = "prefill_copy.json"
PROBE_FILE = "probe.onnx"  # tells whether this CPU multiplies uint8 and int8 without saturation
VERSION = 2
GRAPHS = (*BLOCK_FILES.values(), PROBE_FILE)


def block_tensors(bundle: Bundle) -> list[str]:
    """Names of the tensors that the block's graph needs."""
    return [name for name in bundle.manifest.tensors if name not in ("embedding", "head")]


def prefill_copy_bytes(bundle: Bundle) -> int:
    """Size of the block's matrices at a byte a weight."""
    tensors = (bundle.manifest.tensors[name] for name in block_tensors(bundle))
    return sum(tensor.shape[0] * tensor.shape[1] for tensor in tensors if tensor.scheme is not None)


def is_complete(path: Path) -> bool:
    """Whether a directory holds everything: graphs as their checksums say, weights in their size.

    Hashing the weights would read a gigabyte at every start. As with large bundles their size has to do: the copy gets
    its name only when it is whole, and nothing writes to it afterwards.
    """
    try:
        record = read_json_object(path / RECORD_FILE, BundleError)
        graphs = {name: sha256(path / name) for name in GRAPHS}
        same = record.get("version") == VERSION and record.get("sha256") == graphs
        return same and (path / DATA_FILE).stat().st_size == record.get("size")
    except (BundleError, OSError):
        return False
