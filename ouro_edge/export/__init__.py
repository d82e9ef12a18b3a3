"""Checkpoints in, bundles and GGUF files out. Must not import the runtime."""

__all__ = [
    "batched_block",
    "checkpoint",
    "exporter",
    "float_activations",
    "gguf",
    "hf",
    "open_checkpoint",
    "prefill_copy",
]
