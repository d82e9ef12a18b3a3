"""GGUF files: reading, writing, and running them through graphs built in memory."""

__all__ = ["gguf_bundle", "header", "reader", "text", "write_file"]
