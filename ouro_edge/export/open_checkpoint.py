"""Opens a Hugging Face directory or a .gguf file as a `Checkpoint`."""

from __future__ import annotations

import os
from pathlib import Path

from ouro_edge.errors import CheckpointError
from ouro_edge.export.checkpoint import Checkpoint, is_gguf, is_present
from ouro_edge.export.gguf.reader import open_gguf
from ouro_edge.export.huggingface import open_directory


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face directory or a .gguf file. CheckpointError or ConfigError when it is neither."""
    if os.path.isdir(path):
        return open_directory(path)
    if not is_present(path):
        raise CheckpointError(f"{path} does not exist")
    if is_gguf(path):
        return open_gguf(path)
    raise CheckpointError(f"{path} is not a checkpoint; expected a directory with config.json or a GGUF file")
