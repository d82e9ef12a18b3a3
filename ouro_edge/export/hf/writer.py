"""Writes a checkpoint directory in Hugging Face format: config.json, safetensors (sharded when large), tokenizer files.

All or nothing, and a few million values in memory at a time. The values are those of the source: tensors stored as
float keep their type and bits, quantised ones are written as the numbers that they stand for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.arch.weights import TensorReader, Weights
from ouro_edge.errors import CheckpointError, ExportError, RequestError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.reader import GgufReader
from ouro_edge.export.hf.safetensors_file import ITEM_SIZES, TensorEntry, write_safetensors
from ouro_edge.export.huggingface import INDEX_FILE, TEXT_FILES, SafetensorsReader
from ouro_edge.export.output_directory import fresh_directory
from ouro_edge.export.tensor_names import published_name
from ouro_edge.system.progress import Progress
from ouro_edge.version import __version__

TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # names in safetensors -> names in config.json
MAX_SHARD_BYTES = 5_000_000_000
PIECE_VALUES = 1 << 22
_CREATOR = "created_by"  # key in the metadata of weight files; without it a directory is never overwritten
_CODE = re.compile(r"(?P<module>\w+)\.\w+")  # a reference in auto_map to code beside config.json


def storage_type(dtype: str | None) -> str | None:
    """Name in safetensors of a type named as in torch, or None for None. RequestError for other names."""
    for stored, name in TORCH_TYPES.items():
        if dtype == name:
            return stored
    if dtype is not None:
        raise RequestError(f"dtype is {dtype!r}; expected one of {', '.join(TORCH_TYPES.values())}")
    return None


def write_huggingface(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str | None = None,
    repo_id: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[int, tuple[str, ...]]:
    """Write the directory `out`; returns the bytes of the weights, and notes.

    `dtype` is float32, bfloat16 or float16 for all tensors; None keeps the type of a tensor stored as float and takes
    float32, which is exact, for a quantised one. `repo_id` is where the model's published code is found. ExportError
    when `out` is in use, cannot be written, or a value does not fit the type; CheckpointError when a tensor is damaged
    or missing; RequestError for another dtype. `overwrite` replaces a directory that this function wrote.
    """
    forced = storage_type(dtype)
    weights, config = checkpoint.weights, checkpoint.config
    if config.family.model_type is not None or config.family.translate is not None:
        raise ExportError(
            f"checkpoints of {config.family.model_type or config.model_type} models are read and not written: keep the "
            "one that this model was exported from"
        )
    if config.family.gate and not config.has_gate:
        raise CheckpointError(f"{checkpoint.path} has no exit gate, which checkpoints of this family contain; add "
                              "--gate-from CHECKPOINT")  # fmt: skip
    entries = {name: TensorEntry(forced or _own_type(weights.reader(name)), weights.shapes[name]) for name in weights}
    files, notes = _text_files(checkpoint, entries, repo_id)
    with fresh_directory(out, checkpoint.path, _owned, last="config.json", overwrite=overwrite) as work:
        size = _write_weights(work, weights, entries, progress)
        for name, content in files.items():
            (work / name).write_bytes(content)
    return size, (*checkpoint.notes, *notes)


def _own_type(reader: TensorReader) -> str:
    """The type of a tensor that is stored as float; F32 for a quantised one, which holds its values exactly."""
    if isinstance(reader, SafetensorsReader):
        return reader.dtype
    if isinstance(reader, GgufReader) and reader.type.name in ITEM_SIZES:
        return reader.type.name
    return "F32"


def _write_weights(work: Path, weights: Weights, entries: Mapping[str, TensorEntry], progress: Progress | None) -> int:
    """Write all shards and their index; returns their bytes without headers."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in entries.items():
        if shards[-1] and filled + entry.size > MAX_SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += entry.size
    total = sum(entry.size for entry in entries.values())
    done, weight_map = 0, dict[str, str]()
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"

        def pieces(names: list[str] = names) -> Iterator[NDArray[Any]]:
            nonlocal done
            for name in names:
                if progress:
                    progress(done, total, name)
                yield from _pieces(weights, name, entries[name].dtype)
                done += entries[name].size

        published = {published_name(name, weights.config): entries[name] for name in names}
        weight_map |= dict.fromkeys(published, file)
        metadata = {"format": "pt", _CREATOR: f"ouro-edge {__version__}"}
        write_safetensors(work / file, published, pieces(), metadata)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (work / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if progress:
        progress(total, total, "")
    return total


def _pieces(weights: Weights, name: str, dtype: str) -> Iterator[NDArray[Any]]:
    """A tensor in pieces of rows, in the type that it is written in."""
    import ml_dtypes

    numpy_type: Any = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    rows, *columns = weights.shapes[name]
    step = max(1, PIECE_VALUES // columns[0]) if columns else rows
    for start in range(0, rows, step):
        with np.errstate(over="ignore"):
            values = weights.rows(name, start, min(rows, start + step)).astype(numpy_type)
        if dtype != "F32" and not np.isfinite(values.astype(np.float32)).all():
            raise ExportError(f"{name} holds values beyond {TORCH_TYPES[dtype]}; choose another dtype")
        yield values


def _text_files(
    checkpoint: Checkpoint, entries: Mapping[str, TensorEntry], repo_id: str | None
) -> tuple[dict[str, bytes], list[str]]:
    """The text files of the source with an adjusted config.json, and notes."""
    files, notes = dict(checkpoint.files), list[str]()
    original = files["config.json"]
    config = parse_json_object(original, str(checkpoint.path / "config.json"), CheckpointError)
    bytes_of = Counter[str]()
    for entry in entries.values():
        bytes_of[entry.dtype] += entry.size
    main_type = TORCH_TYPES[bytes_of.most_common(1)[0][0]]
    changed = dict(config)
    if main_type not in (config.get("dtype"), config.get("torch_dtype")):
        changed.pop("dtype", None)
        changed["torch_dtype"] = main_type
    code = config.get("auto_map")
    if isinstance(code, dict) and (names := sorted({m["module"] for ref in code.values() if (m := _local(ref))})):
        if repo_id:  # transformers then reads the code there
            changed["auto_map"] = {key: f"{repo_id}--{ref}" if _local(ref) else ref for key, ref in code.items()}
        else:
            notes.append("transformers needs the model's published code in the same directory, which is not part of "
                         f"the export: {', '.join(f'{name}.py' for name in names)}")  # fmt: skip
    if changed != config:
        files["config.json"] = (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()
    return files, notes


def _local(reference: object) -> re.Match[str] | None:
    return _CODE.fullmatch(reference) if isinstance(reference, str) else None


def _owned(path: Path) -> set[str] | None:
    """The files of a checkpoint that this module wrote, or None when it did not write the weights in the directory."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(path.glob("model*.safetensors"))
    for file in weights:
        try:
            with safe_open(file, framework="np") as opened:
                if _CREATOR not in (opened.metadata() or {}):
                    return None
        except (SafetensorError, OSError):
            return None
    return {*TEXT_FILES, INDEX_FILE, *(file.name for file in weights)} if weights else None
