"""The exporter's view of a checkpoint: config, lazily read weights, text files. Created by the format readers."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.to_hf import to_hf
from ouro_edge.arch.weights import Weights
from ouro_edge.errors import CheckpointError

NO_GATE = "no exit gate in this file, so depth is fixed; ouro-edge export FILE OUT --gate-from CHECKPOINT adds a gate"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Config, lazily read weights, and the small text files that are copied into a bundle."""

    path: Path
    name: str  # for the model card: "Ouro-1.4B"
    config: ModelConfig
    weights: Weights
    files: Mapping[str, bytes]  # config.json, and tokenizer.json, chat_template.jinja, ... if present
    tensor_types: Mapping[str, int]  # storage type -> number of tensors: {"BF16": 269}
    notes: tuple[str, ...] = field(default=())  # one line each, shown to the user


def with_gate(checkpoint: Checkpoint, donor: Checkpoint) -> Checkpoint:
    """The checkpoint with the exit gate and threshold of another checkpoint of the same model.

    CheckpointError when it already has a gate, when the donor has none, or when their sizes differ.
    """
    mine, theirs = checkpoint.config, donor.config
    if mine.has_gate or not theirs.has_gate:
        raise CheckpointError(f"{checkpoint.path} already has an exit gate; omit --gate-from" if mine.has_gate
                              else f"{donor.path} has no exit gate")  # fmt: skip
    config = replace(mine, has_gate=True, exit_threshold=theirs.exit_threshold)
    sizes = ("hidden_size", "num_layers", "loops", "vocab_size")
    for name in sizes:
        if getattr(mine, name) != getattr(theirs, name):
            raise CheckpointError(f"{donor.path} has {name} {getattr(theirs, name)} and {checkpoint.path} "
                                  f"{getattr(mine, name)}; the gate must come from the same model")  # fmt: skip
    readers = {name: checkpoint.weights.reader(name) for name in checkpoint.weights}
    readers |= {name: donor.weights.reader(name) for name in ("exit_gate.weight", "exit_gate.bias")}
    files = {**checkpoint.files, "config.json": json.dumps(to_hf(config), indent=2).encode()}
    notes = tuple(note for note in checkpoint.notes if note != NO_GATE)
    return replace(checkpoint, config=config, weights=Weights(config, readers), files=files, notes=notes)


def is_present(file: Path, largest: int | None = None) -> bool:
    """Whether the file exists. CheckpointError when it cannot be opened, is a pipe or device, or is too large."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file} is not a regular file; replace it by a copy of the file")
        file.open("rb").close()
    except (FileNotFoundError, ValueError):  # ValueError: not a valid file name
        return False
    except OSError as problem:
        raise CheckpointError(f"{file} cannot be read: {problem.strerror}; change its permissions or name") from None
    if largest is not None and status.st_size > largest:
        raise CheckpointError(f"{file} has {status.st_size} bytes; expected at most {largest}")
    return True


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file: by its suffix, or by its first bytes where it has another name."""
    if path.is_dir():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        if not path.is_file():  # pipes and devices are not opened
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False
