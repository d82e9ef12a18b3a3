"""The tensors of Raven checkpoints under canonical names: fused matrices are split, rotary pairs are put apart.

Nothing is read here: a part of a tensor is a reader of some of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.programs.raven import CODA, CORE, PRELUDE, stack_ranges
from ouro_edge.arch.weights import Array, TensorReader
from ouro_edge.errors import CheckpointError

_MODEL = {
    "transformer.wte.weight": "embedding",
    "transformer.ln_f.weight": "norm",
    "transformer.adapter.weight": "adapter",
    "lm_head.weight": "head",
}
_STACKS = {"prelude": PRELUDE, "core_block": CORE, "coda": CODA}
_LAYER = {"attn.proj": "o_proj", "attn.q_norm": "q_norm", "attn.k_norm": "k_norm", "mlp.proj": "down_proj"}
_NORMS = {
    "before": {"norm_1": "attn_norm", "norm_2": "ffn_norm"},
    "after the branch": {"norm_1": "attn_post_norm", "norm_2": "ffn_post_norm"},
    "after the sum": {
        "norm_1": "attn_norm", "norm_2": "attn_post_norm", "norm_3": "ffn_norm", "norm_4": "ffn_post_norm",
    },
}  # fmt: skip


class Rows:
    """Some rows of a tensor, in another order."""

    def __init__(self, whole: TensorReader, places: NDArray[np.intp]) -> None:
        self._whole, self._places = whole, places
        self.shape = (len(places), *whole.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop as float32."""
        places = self._places[start:stop]
        if not len(places):
            return self._whole.read(0, 0)
        first = int(places.min())
        return self._whole.read(first, int(places.max()) + 1)[places - first]


class Bias:
    """A bias of queries, keys and values from one [2, 1, heads, D] of queries and keys, in another order."""

    def __init__(self, whole: TensorReader, places: NDArray[np.intp], values: int) -> None:
        self._whole, self._places, self._values = whole, places, values
        self.shape = (2 * len(places) + values,)

    def read(self, start: int, stop: int) -> Array:
        """Elements start..stop as float32."""
        q, k = self._whole.read(0, 2).reshape(2, -1)
        return np.concatenate([q[self._places], k[self._places], np.zeros(self._values, np.float32)])[start:stop]


def canonical_readers(config: ModelConfig, readers: Mapping[str, TensorReader]) -> dict[str, TensorReader]:
    """Canonical name -> reader of the tensors of a checkpoint; an unknown name is kept, and reported later.

    CheckpointError for a fused tensor of a shape that the config does not imply.
    """
    found: dict[str, TensorReader] = {}
    shapes, stacks = _fused_shapes(config), stack_ranges(config.stack_layers)
    for name, reader in readers.items():
        match = re.fullmatch(r"transformer\.(prelude|core_block|coda)\.(0|[1-9]\d*)\.(.+?)(\.weight)?", name)
        if name in _MODEL or match is None:
            found[_MODEL.get(name, name)] = reader
            continue
        numbers, part = stacks[_STACKS[match[1]]], match[3]
        if int(match[2]) >= len(numbers):
            found[name] = reader
            continue
        layer = f"layers.{numbers[int(match[2])]}."
        if (short := (_LAYER | _NORMS[config.norms]).get(part)) is not None:
            found[layer + short] = reader
        elif part in shapes:
            if tuple(reader.shape) != shapes[part]:
                raise CheckpointError(f"{name} has shape {list(reader.shape)}; the config implies {list(shapes[part])}")
            found |= {layer + short: split for short, split in _parts(config, part, reader).items()}
        else:
            found[name] = reader
    return found


def _fused_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a layer that hold several canonical ones."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "attn.Wqkv": (config.q_size + 2 * config.kv_size, width),
        "mlp.fc": (2 * config.intermediate_size, width),
    }
    if config.qkv_bias:
        shapes["attn.qk_bias"] = (2, 1, config.num_heads, config.head_dim)
    return shapes


def _parts(config: ModelConfig, part: str, reader: TensorReader) -> dict[str, TensorReader]:
    """The canonical tensors in a fused one."""
    q, kv, f = config.q_size, config.kv_size, config.intermediate_size
    if part == "mlp.fc":
        return {"gate_proj": Rows(reader, np.arange(f)), "up_proj": Rows(reader, f + np.arange(f))}
    if part == "attn.qk_bias":
        return {"qkv_bias": Bias(reader, _apart(config, config.num_heads), kv)}
    return {
        "q_proj": Rows(reader, _apart(config, config.num_heads)),
        "k_proj": Rows(reader, q + _apart(config, config.num_kv_heads)),
        "v_proj": Rows(reader, q + kv + np.arange(kv)),
    }


def _apart(config: ModelConfig, heads: int) -> NDArray[np.intp]:
    """Rows of the projection of so many heads, so that the rotary pair (2i, 2i + 1) becomes (i, i + D/2)."""
    places = np.arange(heads * config.head_dim, dtype=np.intp)
    if not config.family.rotates_pairs:
        return places
    return places.reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
