"""Reads a .gguf file as a checkpoint: the architectures of `arch.families`.

Tensor names and the row order of Q and K are those of llama.cpp, which rotates adjacent rows: converters interleave the
two halves of every head, and this module restores the published order. The gguf package dequantises a few rows at a
time.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.json_object import parse_json_object
from ouro_edge.arch.published import single_pass_note
from ouro_edge.arch.to_hf import to_hf
from ouro_edge.arch.weights import Array, TensorReader, Weights
from ouro_edge.errors import CheckpointError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.export.gguf.config import GATE_BIAS, GATE_THRESHOLD, GATE_WEIGHT, brief, read_config
from ouro_edge.export.gguf.header import Header, Metadata, TensorInfo, read_header
from ouro_edge.export.gguf.own_metadata import OWN_KEYS
from ouro_edge.export.gguf.rope_keys import ROPE_FREQS
from ouro_edge.export.gguf.source import SourceFile
from ouro_edge.export.gguf.text.tokenizer_choice import choose_tokenizer
from ouro_edge.export.gguf.text.vocabulary import read_generation

CHUNK_VALUES = 1 << 20  # dequantised per step; gguf's temporaries need several times as much memory

_MAX_PAIRS = 1 << 16  # half of a head's dimensions

_TOP = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "norm",
    "output.weight": "head",
    "hrm.z_l_init": "state_init",
}
_LAYER = {
    "attn_norm": "attn_norm",
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_gate": "attn_gate_proj",
    "attn_output": "o_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
}
_NORMS = {"post_attention_norm": "attn_post_norm", "post_ffw_norm": "ffn_post_norm"}
_KNOWN_KEYS = {GATE_WEIGHT, GATE_BIAS, GATE_THRESHOLD, *OWN_KEYS}


def open_gguf(
    path: Path, header: Header | None = None, source: SourceFile | None = None, tokenizer: Path | None = None
) -> Checkpoint:
    """Open a .gguf file, which may be open already and its header read; `tokenizer` replaces its tokenizer.

    ConfigError or CheckpointError names the value that is missing, unexpected, damaged or not implemented.
    """
    source = source or SourceFile(path)
    header = header or read_header(source)
    config, notes = read_config(header, _rope_divisors(source, header))
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > config.vocab_size:
        raise CheckpointError(f"{path} has {len(tokens)} tokens for the {config.vocab_size} rows of token_embd.weight")
    text, note = choose_tokenizer(header.metadata, path, config.vocab_size, tokenizer)
    if note:
        notes.append(note)
    name = _model_name(header.metadata, path)
    if note := single_pass_note(name, config):
        notes.append(note)
    if unknown := sorted(k for k in header.metadata if k.startswith("ouro_edge.") and k not in _KNOWN_KEYS):
        notes.append(f"metadata of another version of ouro-edge is ignored: {', '.join(unknown)}")
    return Checkpoint(
        path=path,
        name=name,
        config=config,
        weights=Weights(config, tensor_readers(source, header, config)),
        files=_text_files(header.metadata, config, text),
        tensor_types=dict(Counter(tensor.type.name for tensor in header.tensors.values())),
        notes=tuple(notes),
    )


def canonical_name(name: str, sandwich_norms: bool) -> str:
    """GGUF tensor name -> name in `arch.weights`; an unknown name is returned unchanged and reported later."""
    match = re.fullmatch(r"blk\.(0|[1-9]\d*)\.(\w+)\.weight", name, re.ASCII)
    part = match and (_LAYER | (_NORMS if sandwich_norms else {})).get(match[2])
    return f"layers.{match[1]}.{part}" if match and part else _TOP.get(name, name)


def gguf_name(name: str) -> str:
    """Name in `arch.weights` -> GGUF tensor name."""
    top = {canonical: gguf for gguf, canonical in _TOP.items()}
    if name in top:
        return top[name]
    _, layer, part = name.split(".")
    parts = {canonical: gguf for gguf, canonical in (_LAYER | _NORMS).items()}
    return f"blk.{layer}.{parts[part]}.weight"


class GgufReader:
    """One tensor of a GGUF file that stays open."""

    def __init__(
        self,
        source: Path | SourceFile,
        tensor: TensorInfo,
        head_dim: int | None = None,
        chunk_values: int = CHUNK_VALUES,
    ) -> None:
        self._source = SourceFile(source) if isinstance(source, Path) else source
        self.file, self.tensor, self.shape, self.type = self._source.path, tensor, tensor.shape, tensor.type
        self.head_dim = head_dim  # of Q and K, whose rows are interleaved within each head
        self._chunk_values = chunk_values
        if not can_dequantize(tensor.type):
            raise CheckpointError(f"{tensor.name} is stored as {tensor.type.name}, which the gguf package cannot "
                                  "dequantise; convert the model to another type")  # fmt: skip

    def raw(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows start..stop in the published order and the stored type: bytes [rows, row_bytes]."""
        mapped = self._map()
        if self.head_dim is None:
            return np.asarray(mapped[start:stop])
        row = np.arange(start, stop)
        head, half, pair = row // self.head_dim, row % self.head_dim // (self.head_dim // 2), row % (self.head_dim // 2)
        return np.asarray(mapped[head * self.head_dim + 2 * pair + half])

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop of the first axis as float32."""
        if len(self.shape) == 1:
            return self._values(self.raw(0, 1))[0, start:stop]
        out = np.empty((stop - start, self.shape[-1]), np.float32)
        step = max(1, self._chunk_values // self.shape[-1])
        for i in range(start, stop, step):
            part = self._values(self.raw(i, min(i + step, stop)))
            out[i - start : i - start + len(part)] = part
        return out

    def gather(self, ids: NDArray[np.integer[Any]]) -> Array:
        """Rows with these numbers as float32 [len(ids), K]; reads only these rows."""
        return self._values(np.array(self._map()[ids]))

    def _map(self) -> NDArray[np.uint8]:
        """A memory map of the whole tensor: bytes [rows, row_bytes]."""
        rows = self.tensor.nbytes // self.tensor.row_bytes
        return self._source.map(self.tensor.offset, rows, self.tensor.row_bytes)

    def _values(self, raw: NDArray[np.uint8]) -> Array:
        with np.errstate(all="ignore"):  # Weights reports non-finite values
            values: Array = dequantize(raw, self.type).astype(np.float32, copy=False)
        return values


class ArrayReader:
    """A small tensor that is stored in the metadata: the exit gate."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape = values, values.shape

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop."""
        return self.values[start:stop].copy()


@functools.cache
def can_dequantize(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package can dequantise this type; tested with a block of zeros, because there is no list."""
    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def tensor_readers(source: Path | SourceFile, header: Header, config: ModelConfig) -> dict[str, TensorReader]:
    """Readers of a file's tensors by canonical name; an unknown tensor keeps its name."""
    source = SourceFile(source) if isinstance(source, Path) else source
    readers: dict[str, TensorReader] = {}
    for tensor in header.tensors.values():
        if tensor.name == ROPE_FREQS:  # part of the config
            continue
        name = canonical_name(tensor.name, config.sandwich_norms)
        rotated = name.endswith((".q_proj", ".k_proj")) and len(tensor.shape) == 2 and config.family.interleaved_gguf
        readers[name] = GgufReader(source, tensor, config.head_dim if rotated else None)
    if config.has_gate:
        for name, key in (("exit_gate.weight", GATE_WEIGHT), ("exit_gate.bias", GATE_BIAS)):
            if key in header.metadata:
                values = _floats(header.metadata, key)
                readers[name] = ArrayReader(values[None] if name == "exit_gate.weight" else values)
    return readers


def _rope_divisors(source: SourceFile, header: Header) -> Array | None:
    """The values of rope_freqs.weight, None without it. CheckpointError unless it is a short vector."""
    tensor = header.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if len(tensor.shape) != 1 or tensor.shape[0] > _MAX_PAIRS:
        raise CheckpointError(f"{ROPE_FREQS} has shape {list(tensor.shape)}; expected half of a head's dimensions")
    return GgufReader(source, tensor).read(0, tensor.shape[0])


def _floats(metadata: Metadata, key: str) -> Array:
    values = np.atleast_1d(metadata[key])
    if values.dtype not in (np.float32, np.float64):
        raise CheckpointError(f"{key} is {brief(metadata[key])}; expected an array of float32")
    with np.errstate(over="ignore"):  # Weights reports non-finite values
        return values.astype(np.float32)


def _model_name(metadata: Metadata, path: Path) -> str:
    names = (metadata.get("general.name"), metadata.get("general.basename"), path.stem)
    return next((plain for name in names if isinstance(name, str) and (plain := plain_name(name))), "model")


def plain_name(name: str) -> str:
    """The part of an untrusted name that is safe as a file name; may be empty."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:96].strip("-.")


def _text_files(metadata: Metadata, config: ModelConfig, tokenizer: str | None) -> dict[str, bytes]:
    """The text files of a Hugging Face directory, reconstructed from metadata."""
    files = {"config.json": _json(to_hf(config))}
    if generation := read_generation(metadata, config):
        files["generation_config.json"] = _json(generation)
    if tokenizer is not None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        texts = dict(enumerate(tokens)) if isinstance(tokens, list) else _added_tokens(tokenizer)
        ids = {"bos_token": config.bos_token_id, "pad_token": config.pad_token_id,
               "eos_token": metadata.get("tokenizer.ggml.eos_token_id")}  # fmt: skip
        files["tokenizer.json"] = tokenizer.encode()
        adds = metadata.get("tokenizer.ggml.add_bos_token")
        files["tokenizer_config.json"] = _json(
            {"tokenizer_class": "PreTrainedTokenizerFast"}
            | ({"add_bos_token": adds} if isinstance(adds, bool) else {})
            | {name: texts[i] for name, i in ids.items() if isinstance(i, int) and i in texts}
        )
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        files["chat_template.jinja"] = template.encode()
    return files


def _added_tokens(tokenizer: str) -> dict[int, str]:
    """The special tokens of a tokenizer.json by id, for a file without tokenizer.ggml.tokens."""
    entries = parse_json_object(tokenizer.encode(), "tokenizer.huggingface.json", CheckpointError).get("added_tokens")
    found = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    return {e["id"]: e["content"] for e in found if type(e.get("id")) is int and isinstance(e.get("content"), str)}


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
