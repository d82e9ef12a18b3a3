"""GGUF files: reading, writing, and running them through graphs built in memory."""
