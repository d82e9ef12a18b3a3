"""The tensors of a model: canonical names, shapes that a config implies, lazy reading.

    embedding [V, C]   head [V, C]   norm [C]   exit_gate.weight [1, C]   exit_gate.bias [1]
    layers.N.attn_norm [C]   .q_proj [H*D, C]   .{k,v}_proj [KV*D, C]   .o_proj [C, H*D]    .attn_post_norm [C]
    layers.N.ffn_norm [C]    .{gate,up}_proj [F, C]                     .down_proj [C, F]   .ffn_post_norm [C]
    layers.N.qkv_bias [(H + 2 KV) * D]   .q_norm [H*D]   .k_norm [KV*D]    where the family has them
    in some families         layers.N.attn_gate_proj [H*D, C]           state_init [C], and no norms

Models with several stacks number the layers of all of them, one stack after the other. Raven has an adapter [C, 2C] of
the state and the output of the prelude. Layers without an input norm (norms "after the branch") have
the two post norms only; those with norms "after the sum" have all four. Rotary pairs are dimensions i and i + D/2.
Rows are outputs and columns are inputs, as in the checkpoints. Tensors are read on demand, whole or by rows, so that a
model larger than memory can be converted. The file formats that they are read from are implemented in `export`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import CheckpointError

Array = NDArray[np.float32]


class TensorReader(Protocol):
    """One tensor in a file: the shape is known, the values are read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop of the first axis as float32."""
        ...


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a model with this config has."""
    c, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (v, c)}
    has_input_norms = config.family.norm_weights and config.norms != "after the branch"
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        if has_input_norms:
            shapes[layer + "attn_norm"] = (c,)
        shapes[layer + "q_proj"] = (config.q_size, c)
        shapes[layer + "k_proj"] = shapes[layer + "v_proj"] = (config.kv_size, c)
        if config.family.attention_gate:
            shapes[layer + "attn_gate_proj"] = (config.q_size, c)
        shapes[layer + "o_proj"] = (c, config.q_size)
        if config.qkv_bias:
            shapes[layer + "qkv_bias"] = (config.q_size + 2 * config.kv_size,)
        if config.family.qk_norm:
            shapes[layer + "q_norm"], shapes[layer + "k_norm"] = (config.q_size,), (config.kv_size,)
        if has_input_norms:
            shapes[layer + "ffn_norm"] = (c,)
        shapes[layer + "gate_proj"] = shapes[layer + "up_proj"] = (f, c)
        shapes[layer + "down_proj"] = (c, f)
        if config.norms != "before":
            shapes[layer + "attn_post_norm"] = shapes[layer + "ffn_post_norm"] = (c,)
    if config.family.adapter:
        shapes["adapter"] = (c, 2 * c)
    if config.family.norm_weights:
        shapes["norm"] = (c,)
    if config.family.state_init:
        shapes["state_init"] = (c,)
    if config.has_gate:
        shapes["exit_gate.weight"], shapes["exit_gate.bias"] = (1, c), (1,)
    if not config.tie_word_embeddings:
        shapes["head"] = (v, c)
    return shapes


class Weights(Mapping[str, Array]):
    """Checked, lazily read tensors: `weights[name]` is a new float32 array, `rows` reads a part of a tensor.

    CheckpointError at construction when a tensor is missing, unexpected or has a different shape than the config
    implies, and on reading when a value is not finite.
    """

    def __init__(self, config: ModelConfig, readers: Mapping[str, TensorReader]) -> None:
        shapes = tensor_shapes(config)
        if missing := [name for name in shapes if name not in readers]:
            raise CheckpointError(f"checkpoint lacks {_some(missing)}")
        if extra := [name for name in readers if name not in shapes]:
            raise CheckpointError(f"checkpoint has tensors that this model does not use: {_some(extra)}")
        for name, shape in shapes.items():
            if tuple(readers[name].shape) != shape:
                raise CheckpointError(f"{name} has shape {list(readers[name].shape)}; the config implies {list(shape)}")
        self.config = config
        self.shapes = shapes
        self._readers = readers

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows start..stop of a tensor as float32."""
        values = self._readers[name].read(start, stop)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{name} holds values that are not finite; the checkpoint is damaged")
        return values

    def reader(self, name: str) -> TensorReader:
        """The reader of a tensor, for code that depends on the format of its file."""
        return self._readers[name]

    def __getitem__(self, name: str) -> Array:
        if name == "head" and self.config.tie_word_embeddings:
            name = "embedding"
        return self.rows(name, 0, self.shapes[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _some(names: list[str]) -> str:
    """The first three names and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def fused_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Name in a bundle -> the tensors whose rows it concatenates, in graph order.

    Projections with the same input are stored as one matrix: fewer calls at the same speed per weight.
    """
    fused: dict[str, tuple[str, ...]] = {}
    for name in tensor_shapes(config):
        layer, _, part = name.rpartition(".")
        if part == "q_proj" and config.family.attention_gate:
            fused[f"{layer}.qkv_gate_proj"] = tuple(f"{layer}.{p}_proj" for p in ("q", "k", "v", "attn_gate"))
        elif part == "q_proj":
            fused[f"{layer}.qkv_proj"] = tuple(f"{layer}.{p}_proj" for p in "qkv")
        elif part == "gate_proj":
            fused[f"{layer}.gate_up_proj"] = (name, f"{layer}.up_proj")
        elif part not in ("k_proj", "v_proj", "attn_gate_proj", "up_proj"):
            fused[name] = (name,)
    return fused


class FusedRows(NamedTuple):
    """Where a bundle stores a tensor: rows first..last of a fused one."""

    tensor: str
    first: int
    last: int


def fused_rows(config: ModelConfig) -> dict[str, FusedRows]:
    """Name of a tensor -> its rows in the fused tensor of `fused_names` that holds it."""
    shapes, found = tensor_shapes(config), {}
    for fused, parts in fused_names(config).items():
        first = 0
        for part in parts:
            found[part] = FusedRows(fused, first, first + shapes[part][0])
            first += shapes[part][0]
    return found


def head_tensor(names: Container[str]) -> str:
    """Name of the matrix that turns states into logits: "head", or "embedding" where one matrix serves both."""
    return "head" if "head" in names else "embedding"


def block_tensors(names: Iterable[str]) -> list[str]:
    """Those of the tensors that the block reads: all but the embedding, the first state and the head."""
    return [name for name in names if name not in ("embedding", "state_init", "head")]
