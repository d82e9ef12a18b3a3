"""The interface of a model that the runtime opens, and the on-disk format of an exported one."""

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.directory import DirectoryBundle, is_bundle, open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate

__all__ = [
    "Bundle",
    "DirectoryBundle",
    "FittedGate",
    "added_files",
    "batched_graphs",
    "bundle",
    "directory",
    "fitted_gate",
    "is_bundle",
    "kv_ranges",
    "manifest",
    "open_bundle",
    "prefill_copy",
    "tensors",
]
