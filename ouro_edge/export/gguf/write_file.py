"""Writes a checkpoint or an exported directory as one GGUF file: tensors, text files and metadata of ouro-edge."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ouro_edge.bundle.directory import DirectoryBundle
from ouro_edge.errors import ExportError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.bundle_tensors import BundleTensors
from ouro_edge.export.gguf.own_metadata import own_metadata
from ouro_edge.export.gguf.reader import plain_name
from ouro_edge.export.gguf.text.vocabulary import text_metadata
from ouro_edge.export.gguf.writer import Q, QuantizedWeights, file_name, precision, write_gguf
from ouro_edge.quant import Rounded
from ouro_edge.system.progress import Progress

_TEXT_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Written = tuple[Path, tuple[str, ...]]  # the file, and notes


def checkpoint_to_gguf(
    checkpoint: Checkpoint,
    out: Path,
    kind: str,
    *,
    source: Mapping[str, Any] | None = None,
    rounded: Mapping[str, Rounded] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write a checkpoint; `kind` is a key of writer.PRECISIONS or ALIASES. Errors as for `write_gguf`."""
    stored = precision(kind)
    out = _place(out, checkpoint.name, stored)
    if os.path.exists(out) and out.samefile(checkpoint.path):
        raise ExportError(f"{out} is the model that is being read; choose another name")
    text, notes = text_metadata(checkpoint.config, checkpoint.files)
    about = {"general.name": _encodable(checkpoint.name), "general.type": "model"}
    if repository := (source or {}).get("repo_id"):
        about["general.source.repo_url"] = f"https://huggingface.co/{repository}"
    tensors = QuantizedWeights(checkpoint.weights, stored, rounded)
    write_gguf(out, checkpoint.config, tensors, stored, about | text, overwrite=overwrite, progress=progress)
    return out, (*checkpoint.notes, *notes)


def bundle_to_gguf(
    bundle: DirectoryBundle, out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Written:
    """Write a bundle in its number format, with fitted gate and KV ranges. Errors as for `write_gguf`."""
    tensors = BundleTensors(bundle)
    out = _place(out, bundle.name, tensors.main_type())
    files = {name: content.encode() for name in _TEXT_FILES if (content := bundle.text(name)) is not None}
    text, notes = text_metadata(bundle.config, files)
    pairs = {"general.name": _encodable(bundle.name), "general.type": "model", **text}
    pairs |= own_metadata(bundle.fitted_gate(), bundle.kv_ranges())
    write_gguf(out, bundle.config, tensors, tensors.main_type(), pairs, overwrite=overwrite, progress=progress)
    if tensors.changed():
        notes.append("some tensors were quantised again, because GGUF has no form for 8 bits with zero points, for "
                     "blocks of 16, or for rows that are not a multiple of 32")  # fmt: skip
    return out, tuple(notes)


def _place(out: Path, name: str, kind: Q) -> Path:
    """The file to write: a name without .gguf is a directory; the file in it is named after model and type."""
    if out.suffix.lower() == ".gguf" and not os.path.isdir(out):
        return out
    return out / file_name(plain_name(name) or "model", kind)


def _encodable(name: str) -> str:
    """A name in which characters that UTF-8 cannot encode are replaced."""
    return name.encode(errors="replace").decode()
