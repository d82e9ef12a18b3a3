"""Checkpoints in, bundles and GGUF files out. Must not import the runtime."""
