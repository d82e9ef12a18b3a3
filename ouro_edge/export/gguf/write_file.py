"""Checkpoint or bundle -> one GGUF file. Puts the writer, the text and our own metadata together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.fitted_gate import read_gate
from ouro_edge.bundle.kv_ranges import has_ranges, read_ranges
from ouro_edge.errors import ExportError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.bundle_tensors import BundleTensors
from ouro_edge.export.gguf.own_metadata import measured_metadata
from ouro_edge.export.gguf.reader import plain_name
from ouro_edge.export.gguf.vocabulary import text_metadata
from ouro_edge.export.gguf.writer import Q, QuantizedWeights, file_name, precision, write_gguf
from ouro_edge.system.progress import Progress

_TEXT_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Written = tuple[Path, tuple[str, ...]]  # the file, and notes about it


def checkpoint_to_gguf(
    checkpoint: Checkpoint,
    out: Path,
    kind: str,
    *,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write a checkpoint; `kind` is one of gguf_writer.PRECISIONS or ALIASES. Errors as `write_gguf`'s."""
    stored = precision(kind)
    out = _place(out, checkpoint.name, stored)
    if os.path.exists(out) and out.samefile(checkpoint.path):
        raise ExportError(f"{out} is the model that is read; choose another name")
    text, notes = text_metadata(checkpoint.config, checkpoint.files)
    about = {"general.name": _encodable(checkpoint.name), "general.type": "model"}
    if repository := (source or {}).get("repo_id"):
        about["general.source.repo_url"] = f"https://huggingface.co/{repository}"
    tensors = QuantizedWeights(checkpoint.weights, stored)
    write_gguf(out, checkpoint.config, tensors, stored, about | text, overwrite=overwrite, progress=progress)
    return out, (*checkpoint.notes, *notes)


def bundle_to_gguf(bundle: Bundle, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Written:
    """Write a bundle in its own number format, with its fitted gate and KV ranges. Errors as `write_gguf`'s."""
    tensors = BundleTensors(bundle)
    out = _place(out, bundle.manifest.name, tensors.type())
    files = {name: content.encode() for name in _TEXT_FILES if (content := bundle.text(name)) is not None}
    text, notes = text_metadata(bundle.config, files)
    ranges = read_ranges(bundle) if has_ranges(bundle) else None
    pairs = {"general.name": _encodable(bundle.manifest.name), "general.type": "model", **text}
    pairs |= measured_metadata(read_gate(bundle), ranges)
    write_gguf(out, bundle.config, tensors, tensors.type(), pairs, overwrite=overwrite, progress=progress)
    if tensors.changed():
        notes.append("some tensors were quantised again, because GGUF has no form for 8 bits with zero points, for "
                     "blocks of 16, or for rows that are no multiple of 32")  # fmt: skip
    return out, tuple(notes)


def _place(out: Path, name: str, kind: Q) -> Path:
    """The file to write: what is not called .gguf is a directory, and its file is named after model and type."""
    if out.suffix.lower() == ".gguf" and not os.path.isdir(out):
        return out
    return out / file_name(plain_name(name) or "model", kind)


def _encodable(name: str) -> str:
    """A name that may hold anything, as text that can be written."""
    return name.encode(errors="replace").decode()
