"""Fills the arrays of a graph from the tensors of a .gguf file: MatMulNBits layout, a few rows at a time.

Q4_0, Q4_1 and Q8_0 are repacked exactly and F32 is copied. All other types (K-quants, F16, BF16, ...) become Q8_0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import Weights, fused_names, head_tensor
from ouro_edge.bundle.tensors import DTYPES, ArraySpec, TensorSpec
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.reader import GgufReader
from ouro_edge.export.gguf.repack import BLOCK_SIZE, EXACT, Parts, scheme

_PIECE_VALUES = 1 << 22  # read from the file per step
_ALIGNMENT_BYTES = 64

Arrays = Mapping[str, NDArray[Any]]


def run_type(weights: Weights, name: str) -> Q:
    """The type in which a tensor runs: F32, or one of EXACT."""
    reader, shape = weights.reader(name), weights.shapes[name]
    if not isinstance(reader, GgufReader) or len(shape) == 1:
        return Q.F32
    if reader.type in EXACT or reader.type == Q.F32:
        return reader.type
    return Q.F32 if shape[-1] % BLOCK_SIZE else Q.Q8_0


def fused_groups(weights: Weights) -> dict[str, tuple[str, ...]]:
    """Name in the graphs -> the tensors whose rows it concatenates; parts with different types are not joined.

    The embedding is excluded, because its rows are read from the file; the head is always included.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name, parts in fused_names(weights.config).items():
        same = len({run_type(weights, part) for part in parts}) == 1
        groups |= {name: parts} if same else {part: (part,) for part in parts}
    del groups["embedding"]
    return groups | {"head": (head_tensor(weights.shapes),)}


def tensor_specs(weights: Weights, groups: Mapping[str, tuple[str, ...]]) -> dict[str, TensorSpec]:
    """Types and shapes of the arrays of the graphs."""
    specs = {}
    for name, parts in groups.items():
        kind, columns = run_type(weights, parts[0]), weights.shapes[parts[0]][1:]
        shape = (sum(weights.shapes[part][0] for part in parts), *columns)
        if kind == Q.F32:
            specs[name] = TensorSpec(shape, None, {"values": ArraySpec("float32", shape)})
            continue
        how = scheme(kind)
        arrays = {part: ArraySpec(*at) for part, at in how.parts(shape).items()}
        if EXACT[kind][1]:
            arrays["offsets"] = arrays["scales"]
        specs[name] = TensorSpec(shape, how, arrays)
    return specs


def blank_arrays(specs: Mapping[str, TensorSpec], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Empty arrays by name of their initializer, in one allocation.

    One large allocation is backed by huge pages, and is returned to the system as soon as the arrays are released.
    """
    needed = {f"{name}.{part}": array for name in names for part, array in specs[name].parts.items()}
    memory, arrays, start = np.empty(sum(map(_padded_size, needed.values())), np.uint8), {}, 0
    for name, array in needed.items():
        arrays[name] = memory[start : start + array.size].view(DTYPES[array.dtype]).reshape(array.shape)
        start += _padded_size(array)
    return arrays


def _padded_size(array: ArraySpec) -> int:
    """Bytes of an array, including the gap that aligns the next array."""
    return -(-array.size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


@np.errstate(all="ignore")  # non-finite values are reported at the end
def fill(weights: Weights, name: str, parts: tuple[str, ...], arrays: Arrays) -> None:
    """Write one tensor of the graphs into its arrays. CheckpointError when a value is not finite."""
    kind, start = run_type(weights, parts[0]), 0
    step = max(1, _PIECE_VALUES // weights.shapes[parts[0]][-1])
    if kind != Q.F32:
        whole = Parts(arrays[f"{name}.packed"], arrays[f"{name}.scales"], arrays.get(f"{name}.offsets"))
    for part in parts:
        reader, count = weights.reader(part), weights.shapes[part][0]
        for first in range(0, count, step):
            last = min(count, first + step)
            if kind == Q.F32:
                arrays[f"{name}.values"][start + first : start + last] = weights.rows(part, first, last)
            elif isinstance(reader, GgufReader) and reader.type == kind:
                whole.fill(kind, start + first, reader.raw(first, last))
            else:
                whole.fill(kind, start + first, quantize(weights.rows(part, first, last), kind))
        start += count
    if kind != Q.F32 and not whole.finite():
        raise CheckpointError(f"{name} holds values that are not finite, or beyond float16: the file is damaged")


def type_changes(weights: Weights) -> str:
    """One line about the tensors that run in another type than they are stored in; empty without such tensors."""
    changed: Counter[tuple[str, str]] = Counter()
    for name, shape in weights.shapes.items():
        reader = weights.reader(name)
        if not isinstance(reader, GgufReader) or len(shape) == 1:
            continue
        gathered = name == "embedding" and not weights.config.tie_word_embeddings  # read from the file row by row
        if not gathered and reader.type != (kind := run_type(weights, name)):
            changed[reader.type.name, kind.name] += 1
    return "; ".join(f"{count} {old} tensors run as {new}" for (old, new), count in sorted(changed.items()))
