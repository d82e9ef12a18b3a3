"""Fills the arrays of a graph from the tensors of a .gguf file: MatMulNBits layout, a few rows at a time.

Q4_0, Q4_1 and Q8_0 (`repack`) and the types of `coded` are converted exactly, F32 is copied. All other types (F16,
BF16, IQ2_XS, ...) run in float32 or as Q8_0, see `exact_by_default`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import Weights, fused_names, head_tensor
from ouro_edge.bundle.tensors import DTYPES, ArraySpec, TensorSpec
from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.blocks.coded import CODINGS, convert
from ouro_edge.export.gguf.blocks.repack import BLOCK_SIZE, EXACT, Parts, scheme
from ouro_edge.export.gguf.reader import GgufReader
from ouro_edge.quant.packing import pack

_PIECE_VALUES = 1 << 22  # read from the file per step
_CODED_PIECE_VALUES = 1 << 20  # where the steps have several float32 copies
_ALIGNMENT_BYTES = 64
_MAX_EXACT_BYTES = 2 << 30  # of float32 copies: up to here decoding is fast enough that exactness is worth its time
_FREE_TO_EXACT_BYTES = 4  # onnxruntime copies the arrays, so twice the bytes are needed for a moment

Arrays = Mapping[str, NDArray[Any]]
Kinds = Mapping[str, Q]  # name of a tensor -> the type in which it runs: F32, Q8_0, or its own


def run_types(weights: Weights, exact: bool) -> dict[str, Q]:
    """The type in which every tensor runs; `exact` runs types without codes in float32 instead of as Q8_0."""
    kinds = {}
    for name, shape in weights.shapes.items():
        reader = weights.reader(name)
        kinds[name] = Q.F32
        if not isinstance(reader, GgufReader) or len(shape) == 1:
            continue
        if reader.type in EXACT or reader.type in CODINGS:
            kinds[name] = reader.type
        elif reader.type != Q.F32 and not exact and shape[-1] % BLOCK_SIZE == 0:
            kinds[name] = Q.Q8_0
    return kinds


def float_bytes(weights: Weights) -> int:
    """What the tensors that would run as Q8_0 take in float32."""
    as_int8 = run_types(weights, exact=False)
    return sum(4 * prod(weights.shapes[name]) for name in _changed(weights, as_int8))


def exact_by_default(weights: Weights, free_memory: int) -> bool:
    """Whether types without codes run in float32 if the user does not choose: by their size in float32."""
    needed = float_bytes(weights)
    return needed <= _MAX_EXACT_BYTES and _FREE_TO_EXACT_BYTES * needed <= free_memory


def fused_groups(weights: Weights, kinds: Kinds) -> dict[str, tuple[str, ...]]:
    """Name in the graphs -> the tensors whose rows it concatenates; parts with different types are not joined.

    The embedding is excluded, because its rows are read from the file; the head is always included.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name, parts in fused_names(weights.config).items():
        same = len({kinds[part] for part in parts}) == 1
        groups |= {name: parts} if same else {part: (part,) for part in parts}
    del groups["embedding"]
    return groups | {"head": (head_tensor(weights.shapes),)}


def tensor_specs(weights: Weights, groups: Mapping[str, tuple[str, ...]], kinds: Kinds) -> dict[str, TensorSpec]:
    """Types and shapes of the arrays of the graphs."""
    specs = {}
    for name, parts in groups.items():
        kind, columns = kinds[parts[0]], weights.shapes[parts[0]][1:]
        shape = (sum(weights.shapes[part][0] for part in parts), *columns)
        if kind == Q.F32:
            specs[name] = TensorSpec(shape, None, {"values": ArraySpec("float32", shape)})
            continue
        coding = CODINGS.get(kind)
        how = scheme(kind) if coding is None else coding.scheme
        arrays = {part: ArraySpec(*at) for part, at in how.parts(shape).items()}
        if EXACT[kind][1] if coding is None else coding.middle is not None:
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
def fill(weights: Weights, name: str, parts: tuple[str, ...], kind: Q, arrays: Arrays) -> None:
    """Write one tensor of the graphs into its arrays. CheckpointError when a value is not finite."""
    start = 0
    step = max(1, (_CODED_PIECE_VALUES if kind in CODINGS else _PIECE_VALUES) // weights.shapes[parts[0]][-1])
    if kind != Q.F32:
        whole = Parts(arrays[f"{name}.packed"], arrays[f"{name}.scales"], arrays.get(f"{name}.offsets"))
    for part in parts:
        reader, count = weights.reader(part), weights.shapes[part][0]
        for first in range(0, count, step):
            last = min(count, first + step)
            if kind == Q.F32:
                arrays[f"{name}.values"][start + first : start + last] = weights.rows(part, first, last)
            elif not isinstance(reader, GgufReader) or reader.type != kind:
                whole.fill(kind, start + first, quantize(weights.rows(part, first, last), kind))
            elif kind in CODINGS:
                rows = slice(start + first, start + last)
                codes, whole.scales[rows], offsets = convert(kind, reader.raw(first, last))
                whole.packed[rows] = pack(codes, CODINGS[kind].bits)
                if whole.offsets is not None:
                    whole.offsets[rows] = offsets
            else:
                whole.fill(kind, start + first, reader.raw(first, last))
        start += count
    if kind != Q.F32 and not whole.finite():
        raise CheckpointError(f"{name} holds values that are not finite, or beyond float16: the file is damaged")


def type_changes(weights: Weights, kinds: Kinds) -> str:
    """One line about the tensors that are rounded to Q8_0, and how far; empty without such tensors."""
    if not (changed := _changed(weights, kinds)):
        return ""
    counts = Counter(changed.values())
    tensors = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return (f"{tensors} tensors run as Q8_0, off by at most 0.4% of the largest weight in a block of 32; exact in "
            f"float32, with {float_bytes(weights) / 1e9:.1f} GB: --gguf-weights exact")  # fmt: skip


def _changed(weights: Weights, kinds: Kinds) -> dict[str, str]:
    """Name -> stored type of the tensors that run as Q8_0 but are not stored so."""
    found = {}
    for name, kind in kinds.items():
        reader = weights.reader(name)
        gathered = name == "embedding" and not weights.config.tie_word_embeddings  # read from the file row by row
        if isinstance(reader, GgufReader) and kind == Q.Q8_0 != reader.type and not gathered:
            found[name] = reader.type.name
    return found
