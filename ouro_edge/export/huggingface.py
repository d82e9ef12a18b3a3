"""Reads a checkpoint directory in Hugging Face format: config.json, safetensors (one file or sharded), tokenizer files.

Pickles and code are never opened: other weight files in the directory are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig, from_hf
from ouro_edge.arch.families import FAMILIES
from ouro_edge.arch.hf_fields import unknown_fields
from ouro_edge.arch.json_object import parse_json_object, read_json_object
from ouro_edge.arch.published import single_pass_note
from ouro_edge.arch.weights import Array, TensorReader, Weights
from ouro_edge.errors import CheckpointError
from ouro_edge.export.checkpoint import Checkpoint, is_present
from ouro_edge.export.raven_tensors import canonical_readers
from ouro_edge.export.sentencepiece import convert
from ouro_edge.export.tensor_names import Part, is_ignored, parts_of

TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_SENTENCEPIECE = "tokenizer.model"
_MAX_TEXT_FILE_BYTES = 64 << 20
_DTYPES = ("F32", "F16", "BF16")
INDEX_FILE = "model.safetensors.index.json"


def open_directory(path: Path) -> Checkpoint:
    """Open a checkpoint directory. ConfigError or CheckpointError names what is missing, unexpected or damaged."""
    is_present(path / "config.json", _MAX_TEXT_FILE_BYTES)  # a missing file is reported by the next line
    data = read_json_object(path / "config.json")
    model_type, variant = data.get("model_type"), None
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is not None and family.variant is not None:  # names of tensors say what config.json does not
        variant = family.variant(_open_files(path))
    config, unknown = from_hf(data, variant), unknown_fields(data)
    tensors = {name: reader for name, reader in _open_files(path).items() if not is_ignored(name, config)}
    types = Counter(reader.dtype for reader in tensors.values())
    readers = canonical_readers(config, tensors) if config.family.adapter else _readers(path, config, tensors)
    notes = (
        [f"config.json has fields that are not known here and were ignored: {', '.join(unknown)}"] if unknown else []
    )
    if note := single_pass_note(path.resolve().name, config):
        notes.append(note)
    files = _text_files(path)
    if "tokenizer.json" not in files and is_present(path / _SENTENCEPIECE, _MAX_TEXT_FILE_BYTES):
        notes.append(_convert_tokenizer(path, files))
    return Checkpoint(
        path=path,
        name=path.resolve().name,
        config=config,
        weights=Weights(config, readers),
        files=files,
        tensor_types=dict(types),
        notes=tuple(notes),
    )


def _readers(path: Path, config: ModelConfig, tensors: Mapping[str, TensorReader]) -> dict[str, TensorReader]:
    """Canonical name -> reader of the tensors of a checkpoint."""
    readers: dict[str, TensorReader] = {}
    for name, reader in tensors.items():
        _check_rows(name, reader, parts := parts_of(name, config))
        for part, rows in parts:
            if part in readers:
                raise CheckpointError(f"{path} has the tensor {part} twice, alone and as a part of another one")
            readers[part] = reader if rows is None else RowsReader(reader, *rows)
    return readers


def _check_rows(name: str, reader: TensorReader, parts: list[Part]) -> None:
    """CheckpointError unless a tensor that holds several has the rows of all of them."""
    if (last := parts[-1].rows) is not None and (not reader.shape or reader.shape[0] != last[1]):
        raise CheckpointError(f"{name} has shape {list(reader.shape)}; the config implies {last[1]} rows")


class RowsReader:
    """Some rows of a tensor that holds several."""

    def __init__(self, whole: TensorReader, first: int, last: int) -> None:
        self._whole, self._first = whole, first
        self.shape = (max(0, min(last, whole.shape[0]) - first), *whole.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop as float32."""
        return self._whole.read(self._first + start, self._first + stop)


class SafetensorsReader:
    """One tensor of a safetensors file, memory-mapped only while it is read, so that its pages do not stay resident."""

    def __init__(self, file: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.file, self.name, self.shape, self.dtype = file, name, shape, dtype

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop as float32."""
        with _safe_open(self.file) as tensors:
            return np.asarray(tensors.get_slice(self.name)[start:stop]).astype(np.float32)


def _weight_files(path: Path) -> dict[Path, list[str] | None]:
    """File -> its tensor names according to the index, or None for a single file without an index."""
    single, index = path / "model.safetensors", path / INDEX_FILE
    if not is_present(index, _MAX_TEXT_FILE_BYTES):
        if not is_present(single):
            raise CheckpointError(f"{path} has neither model.safetensors nor {INDEX_FILE}; other formats are not read")
        return {single: None}
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    files: dict[Path, list[str] | None] = {}
    for name, file in weight_map.items():
        if file in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f\x7f\ud800-\udfff]", file):
            raise CheckpointError(f"{index} assigns {name!r} to {file!r}; only files beside the index are read")
        names = files.setdefault(path / file, [])
        assert names is not None
        names.append(name)
    return files


def _open_files(path: Path) -> dict[str, SafetensorsReader]:
    """Every tensor of the checkpoint, by its published name."""
    return {
        name: reader for file, names in _weight_files(path).items() for name, reader in _open_file(file, names).items()
    }


def _open_file(file: Path, expected: list[str] | None) -> dict[str, SafetensorsReader]:
    readers = {}
    with _safe_open(file) as tensors:
        names = list(tensors.keys())
        if expected is not None and (wrong := sorted(set(names) ^ set(expected))):
            raise CheckpointError(f"{INDEX_FILE} and {file.name} disagree about {wrong[0]}")
        for name in names:
            part = tensors.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise CheckpointError(f"{name} in {file.name} is {part.get_dtype()}; expected {' or '.join(_DTYPES)}")
            readers[name] = SafetensorsReader(file, name, tuple(part.get_shape()), part.get_dtype())
    return readers


def _safe_open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not is_present(file):
        raise CheckpointError(f"{file} is missing")
    try:
        import ml_dtypes  # noqa: F401  (safetensors needs its bfloat16)

        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{file} is not a valid safetensors file: {problem}") from None


def _convert_tokenizer(path: Path, files: dict[str, bytes]) -> str:
    """Add a tokenizer.json made of tokenizer.model where possible; the note says what was done."""
    name = "tokenizer_config.json"
    settings = parse_json_object(files[name], str(path / name), CheckpointError) if name in files else {}
    try:
        text, why = convert((path / _SENTENCEPIECE).read_bytes(), settings)
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    if text is None:
        return f"{why}; without a tokenizer.json this model works on token ids only"
    files["tokenizer.json"] = text.encode()
    return "tokenizer.json was made from tokenizer.model"


def _text_files(path: Path) -> dict[str, bytes]:
    files = {}
    for name in TEXT_FILES:
        if is_present(path / name, _MAX_TEXT_FILE_BYTES):
            files[name] = (path / name).read_bytes()
    if "chat_template.jinja" not in files and "tokenizer_config.json" in files:
        template = read_json_object(path / "tokenizer_config.json", CheckpointError).get("chat_template")
        if isinstance(template, list):  # several named templates
            named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
            template = next(named, {}).get("template")
        if isinstance(template, str):
            try:
                files["chat_template.jinja"] = template.encode()
            except UnicodeEncodeError as problem:
                raise CheckpointError(f"{path / 'tokenizer_config.json'}: chat_template is not valid Unicode text: "
                                      f"{problem}; download it again") from None  # fmt: skip
    return files
