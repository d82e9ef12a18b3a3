"""Quantisation settings: a Scheme for one tensor, a Recipe for a model, presets by name.

Tensor names are those of ouro_edge/arch/weights.py, fused ones included.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from ouro_edge.errors import BundleError, RequestError

PRESETS = ("int4", "int8", "fp32")

_LAYER_TENSOR = re.compile(r"layers\.\d+\.(\w+)")
_ATTENTION = frozenset(("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "attn_gate_proj", "qkv_gate_proj"))
_FEED_FORWARD = frozenset(("gate_proj", "up_proj", "down_proj", "gate_up_proj"))
_LAYER_NORMS = frozenset(("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm", "q_norm", "k_norm", "qkv_bias"))
_FLOAT32_TENSORS = frozenset(("norm", "exit_gate.weight", "exit_gate.bias", "state_init"))


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bits per weight, weights per scale (a block along the input axis), and whether the grid is symmetric around 0."""

    bits: int
    block_size: int = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise RequestError(f"bits is {self.bits!r}; expected 4 or 8")
        size = self.block_size
        if type(size) is not int or not 16 <= size <= 256 or size & (size - 1):
            raise RequestError(f"block_size is {size!r}; expected 16, 32, 64, 128 or 256")
        if type(self.symmetric) is not bool:
            raise RequestError(f"symmetric is {self.symmetric!r}; expected true or false")

    def blocks(self, width: int) -> int:
        """The number of blocks in a row of `width` inputs; the last may be padded."""
        return -(-width // self.block_size)

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array that stores a matrix [N, K]; see `QuantizedTensor`."""
        rows, width = shape
        blocks = self.blocks(width)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "packed": ("uint8", (rows, blocks, self.block_size * self.bits // 8)),
            "scales": ("float32", (rows, blocks)),
        }
        if not self.symmetric:
            parts["zero_points"] = ("uint8", (rows, -(-blocks * self.bits // 8)))
        return parts

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Scheme:
        """Read `to_dict`'s form. BundleError names a missing or unknown key, or an invalid value."""
        if not isinstance(data, dict):
            raise BundleError(f"quantisation scheme is {data!r}; expected a JSON object")
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise BundleError(f"quantisation scheme lacks {', '.join(missing)}; export the model again")
        if unknown := sorted(str(key) for key in data if key not in names):
            raise BundleError(f"quantisation scheme has unknown fields {', '.join(unknown)}; export the model again")
        try:
            return cls(**data)
        except RequestError as problem:
            raise BundleError(f"quantisation scheme: {problem}") from None


@dataclass(frozen=True, slots=True)
class Recipe:
    """The scheme of each kind of tensor; None keeps it in float32. Parts of a fused tensor always share a scheme."""

    name: str
    attention: Scheme | None
    feed_forward: Scheme | None
    head: Scheme | None
    embedding: Scheme | None

    def scheme_for(self, tensor_name: str) -> Scheme | None:
        """The scheme of a tensor, or None for float32 (always for norms and exit gate). RequestError: unknown name."""
        if tensor_name in _FLOAT32_TENSORS:
            return None
        if tensor_name in ("head", "adapter"):  # every step of a core goes through its adapter
            return self.head
        if tensor_name == "embedding":
            return self.embedding
        match = _LAYER_TENSOR.fullmatch(tensor_name)
        part = match[1] if match else ""
        if part in _ATTENTION:
            return self.attention
        if part in _FEED_FORWARD:
            return self.feed_forward
        if part in _LAYER_NORMS:
            return None
        raise RequestError(f"the recipe has no tensor {tensor_name!r}; expected a name of ouro_edge/arch/weights.py")


def preset(name: str, *, block_size: int | None = None, symmetric: bool | None = None) -> Recipe:
    """The recipe with this name: int4 (symmetric blocks of 128, head and embedding in int8), int8
    (blocks of 32 with zero points) or fp32.

    RequestError for an unknown name or block size, and for a block size or symmetry in fp32.
    """
    if name not in PRESETS:
        raise RequestError(f"precision is {name!r}; expected one of {', '.join(PRESETS)}")
    if name == "fp32":
        if block_size is not None or symmetric is not None:
            raise RequestError("fp32 has no blocks: omit the block size and the symmetry, or use int4 or int8")
        return Recipe(name, None, None, None, None)
    # int8 is meant to reproduce the original model's answers. Activations are rounded in the same blocks as weights, so
    # blocks of 32 reduce the divergence to a quarter (SmolLM2-135M: 0.025 to 0.006 nats) for 9% more bytes, and zero
    # points reduce it by a further tenth for 3%. At int4 the rounding of the weights outweighs these effects.
    size = (32 if name == "int8" else 128) if block_size is None else block_size
    symmetric = name != "int8" if symmetric is None else symmetric
    eight = Scheme(8, size, symmetric)
    block = Scheme(4, size, symmetric) if name == "int4" else eight
    return Recipe(name, attention=block, feed_forward=block, head=eight, embedding=eight)
