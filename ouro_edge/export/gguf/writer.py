"""Writes a model as one GGUF file in llama.cpp's schema: all or nothing, one tensor in memory at a time.

Keys, tensor names and the row order of Q and K are those of llama.cpp; `config` and `reader` read them. Data for
ouro-edge only is metadata under `ouro_edge.`, because llama.cpp rejects files with unknown tensors. The gguf package
quantises checkpoints; the codes of a bundle are copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array, Weights, tensor_shapes
from ouro_edge.errors import ExportError, RequestError
from ouro_edge.export.gguf.blocks.repack import store_rounded
from ouro_edge.export.gguf.config import GATE_BIAS, GATE_THRESHOLD, GATE_WEIGHT
from ouro_edge.export.gguf.reader import gguf_name
from ouro_edge.export.gguf.rope_keys import ROPE_FREQS, scaling_metadata
from ouro_edge.quant import Rounded
from ouro_edge.system.files import atomic_write, parent_directories
from ouro_edge.system.progress import Progress

Q = GGMLQuantizationType

PRECISIONS = {"q4_0": Q.Q4_0, "q4_1": Q.Q4_1, "q8_0": Q.Q8_0, "f16": Q.F16, "f32": Q.F32}
ALIASES = {"int4": "q4_0", "int8": "q8_0", "fp32": "f32"}
_FILE_TYPES = {
    Q.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Q.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Q.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Q.F16: LlamaFileType.MOSTLY_F16,
    Q.F32: LlamaFileType.ALL_F32,
}
_PIECE_VALUES = 1 << 22  # quantised per step


class TensorSource(Protocol):
    """Tensors by canonical name in GGUF's types, with the rows of Q and K in the published order."""

    def kind(self, name: str) -> GGMLQuantizationType:
        """The type that a tensor is stored in."""
        ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop: bytes [rows, row_bytes], or float32 or float16 [rows, K] or [K]."""
        ...


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """The tensors of a checkpoint, quantised on reading. Vectors stay float32."""

    weights: Weights
    type: GGMLQuantizationType
    rounded: Mapping[str, Rounded] | None = None  # matrices with codes for Q4_0, Q4_1 or Q8_0 blocks

    def kind(self, name: str) -> GGMLQuantizationType:
        """In quantised files, embedding and head take Q8_0, as in a bundle, and rows that are not whole blocks F16."""
        shape = self.weights.shapes[name]
        if len(shape) == 1 or name.startswith("exit_gate"):
            return Q.F32
        if self.type in (Q.F16, Q.F32):
            return self.type
        if shape[1] % GGML_QUANT_SIZES[self.type][0]:
            return Q.F16
        return Q.Q8_0 if name in ("embedding", "head") else self.type

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop in the type of the tensor."""
        given = None if self.rounded is None else self.rounded.get(name)
        if given is not None:
            return store_rounded(given, self.kind(name), start, stop)
        with np.errstate(over="ignore"):
            stored: NDArray[Any] = quantize(self.weights.rows(name, start, stop), self.kind(name))
        if stored.dtype == np.float16 and not np.isfinite(stored).all():
            raise ExportError(f"{name} holds values beyond float16; write f32 or q8_0 instead")
        return stored


def precision(name: str) -> GGMLQuantizationType:
    """The type of a precision or of an alias. RequestError for other names."""
    kind = PRECISIONS.get(ALIASES.get(name, name))
    if kind is None:
        raise RequestError(f"precision is {name!r}; a GGUF file takes {', '.join(PRECISIONS)} (int4 is q4_0, "
                           "int8 is q8_0)")  # fmt: skip
    return kind


def file_name(model: str, kind: GGMLQuantizationType) -> str:
    """The conventional name of a file, such as Ouro-1.4B-Q4_0.gguf."""
    return f"{model}-{kind.name}.gguf"


def write_gguf(
    out: Path,
    config: ModelConfig,
    tensors: TensorSource,
    kind: GGMLQuantizationType,
    metadata: Mapping[str, Any],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model to the file `out`; `metadata` is added to that of the config, and `kind` is the type of the file.

    Metadata values are strings, bools, NumPy scalars and arrays, and lists of strings. ExportError when `out` exists or
    cannot be written. With `overwrite`, an existing file is replaced when the new one is complete.
    """
    out = Path(os.path.realpath(out))
    if not config.family.has_gguf:
        raise ExportError(f"GGUF has no form for models of the type {config.family.architecture}: export to a "
                          "directory instead")  # fmt: skip
    if os.path.exists(out) and not (overwrite and out.is_file()):
        raise ExportError(f"{out} exists; choose another name" + ("" if out.is_dir() else " or pass --overwrite"))
    try:
        with parent_directories(out), atomic_write(out) as file:  # the gguf package opens the path again
            _write(Path(file.name), config, tensors, kind, metadata, progress)
    except OSError as problem:
        raise ExportError(f"{out} cannot be written: {problem.strerror or problem}; nothing was kept") from None


def _write(
    path: Path,
    config: ModelConfig,
    tensors: TensorSource,
    kind: GGMLQuantizationType,
    metadata: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    writer = GGUFWriter(path, config.model_type)
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if not name.startswith("exit_gate")}
    scaling, divisors = scaling_metadata(config)
    scaling = {f"{config.model_type}.{key}": value for key, value in scaling.items()}
    try:
        writer.add_file_type(_FILE_TYPES[kind])
        writer.add_quantization_version(2)
        for key, value in (
            _config_metadata(config) | scaling | _gate_metadata(config, tensors) | dict(metadata)
        ).items():
            add_pair(writer, key, value)
        if divisors is not None:
            writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
        for name, shape in shapes.items():
            stored = tensors.kind(name)
            block, size = GGML_QUANT_SIZES[stored]
            count = int(np.prod(shape))
            writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), count // block * size, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        done, total = 0, sum(int(np.prod(shape)) for shape in shapes.values())
        for name, shape in shapes.items():
            if progress:
                progress(done, total, name)
            writer.write_tensor_data(_tensor(config, tensors, name, shape))
            done += int(np.prod(shape))
        if progress:
            progress(total, total, "")
    finally:
        writer.close()


def _tensor(config: ModelConfig, tensors: TensorSource, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A whole tensor in the layout of the file."""
    if len(shape) == 1:
        return tensors.rows(name, 0, shape[0])
    step = max(1, _PIECE_VALUES // shape[1])
    pieces = [tensors.rows(name, i, min(shape[0], i + step)) for i in range(0, shape[0], step)]
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    # llama.cpp rotates adjacent rows: interleave the halves of each head.
    if name.endswith(("q_proj", "k_proj")) and config.family.interleaved_gguf:
        whole = whole.reshape(-1, 2, config.head_dim // 2, whole.shape[1]).swapaxes(1, 2).reshape(whole.shape)
    return np.ascontiguousarray(whole)


def _config_metadata(config: ModelConfig) -> dict[str, Any]:
    arch = config.model_type
    counts = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    } | ({config.family.loops_key: config.loops} if config.family.loops_key else {})
    pairs: dict[str, Any] = {f"{arch}.{key}": np.uint32(value) for key, value in counts.items()}
    if config.family.gguf is not None:
        own = config.family.gguf.write(config)
        kinds = {bool: bool, int: np.uint32, float: np.float32}
        pairs |= {f"{arch}.{key}": kinds[type(value)](value) for key, value in own.items()}
    pairs[f"{arch}.attention.layer_norm_rms_epsilon"] = np.float32(config.rms_norm_eps)
    pairs[f"{arch}.rope.freq_base"] = np.float32(config.rope_theta)
    return pairs | {f"{arch}.skip_loop_final_norm": not config.loop_norm} if config.family.loops_key else pairs


def _gate_metadata(config: ModelConfig, tensors: TensorSource) -> dict[str, Any]:
    if not config.has_gate:
        return {}
    weight: Array = tensors.rows("exit_gate.weight", 0, 1)
    bias: Array = tensors.rows("exit_gate.bias", 0, 1)
    return {
        GATE_WEIGHT: weight.reshape(-1),
        GATE_BIAS: bias.reshape(-1),
        GATE_THRESHOLD: np.float32(config.exit_threshold),
    }


def add_pair(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add one metadata pair with the type of its value."""
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, (bool, np.bool_)):
        writer.add_bool(key, bool(value))
    elif isinstance(value, np.generic):
        getattr(writer, f"add_{value.dtype.name}")(key, value.item())
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_array(key, value.tolist())
