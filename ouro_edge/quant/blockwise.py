"""Matrices in blocks of 4 or 8 bits: quantise, dequantise, concatenate.

The layout is that of onnxruntime's com.microsoft.MatMulNBits: a row is one output, split into blocks along its inputs;
value = (code - zero point) * scale. An incomplete last block is padded with its zero point, which dequantises to 0.
Threads process cache-sized chunks: a call needs a few megabytes besides input and output, both of which may be
memory-mapped, and the result depends neither on the chunks nor on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import BundleError, RequestError
from ouro_edge.quant.packing import pack, unpack
from ouro_edge.quant.scheme import Scheme
from ouro_edge.quant.search import BlockSearch
from ouro_edge.system.cpus import available_threads

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHUNK_VALUES = 1 << 16  # values per thread and step: the float32 copies about fit a second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix of N outputs by K inputs. BundleError when an array does not have the shape that the scheme implies."""

    scheme: Scheme
    shape: tuple[int, int]  # N, K
    packed: Bytes  # [N, blocks, block_size * bits / 8]
    scales: Array  # [N, blocks], of either sign
    zero_points: Bytes | None  # [N, ceil(blocks * bits / 8)], None when symmetric: the zero point is 2**(bits-1)

    def __post_init__(self) -> None:
        if (self.zero_points is None) != self.scheme.symmetric:
            raise BundleError("exactly the asymmetric schemes have zero points; export the model again")
        for name, (dtype, shape) in self.scheme.parts(self.shape).items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise BundleError(f"{name} is {array.dtype} {list(array.shape)}; expected {dtype} {list(shape)}")


def quantize(values: Array, scheme: Scheme, *, threads: int | None = None) -> QuantizedTensor:
    """Quantise a matrix [N, K]; scales minimise the squared error.

    `threads` defaults to the number of CPUs that this process may use. Scales are finite and never zero or subnormal.
    CheckpointError when a value is not finite, RequestError when `values` is not a float32 matrix.
    """
    if values.ndim != 2 or values.dtype != np.float32:
        raise RequestError(f"values are {values.dtype} {list(values.shape)}; expected a float32 matrix")
    rows, width = values.shape
    size, blocks = scheme.block_size, scheme.blocks(width)
    packed = np.empty((rows, blocks, size * scheme.bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if scheme.symmetric else np.empty((rows, blocks), np.uint8)
    most = max(1, CHUNK_VALUES // size)  # blocks per chunk
    chunks = deque(_rectangles(rows, blocks, most))  # popleft is atomic, so threads can share the queue

    def work() -> None:
        search = BlockSearch(scheme, most)
        while True:
            try:
                r0, r1, b0, b1 = chunks.popleft()
            except IndexError:
                return
            count = (r1 - r0) * (b1 - b0)
            filled = min(width, b1 * size) - b0 * size
            tile = search.values[:count].reshape(r1 - r0, -1)  # a view: [rows, values]
            tile[:, :filled] = values[r0:r1, b0 * size : b0 * size + filled]
            tile[:, filled:] = 0
            try:
                codes, scale, zero = search.encode(count)
            except BaseException:
                chunks.clear()  # the other threads need not finish
                raise
            packed[r0:r1, b0:b1] = pack(codes, scheme.bits).reshape(r1 - r0, b1 - b0, -1)
            scales[r0:r1, b0:b1] = scale.reshape(r1 - r0, b1 - b0)
            if zeros is not None:
                zeros[r0:r1, b0:b1] = zero.reshape(r1 - r0, b1 - b0)

    workers = min(available_threads() if threads is None else threads, len(chunks))
    if workers <= 1:
        work()
    else:
        with ThreadPoolExecutor(workers, "quantize") as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
    return QuantizedTensor(scheme, (rows, width), packed, scales, None if zeros is None else pack(zeros, scheme.bits))


def dequantize(tensor: QuantizedTensor, start: int = 0, stop: int | None = None) -> Array:
    """Rows start..stop as float32 [rows, K]. RequestError when they are out of range."""
    rows = tensor.shape[0]
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise RequestError(f"rows {start} to {stop} are not a part of {rows} rows")
    return _restore(tensor, range(start, stop))


def dequantize_rows(tensor: QuantizedTensor, ids: Sequence[int] | NDArray[np.integer]) -> Array:
    """The rows with these ids as float32 [len(ids), K]; reads no other row. RequestError for an id out of range."""
    index = np.asarray(ids)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise RequestError(f"row ids are {index.dtype} {list(index.shape)}; expected a list of integers")
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < tensor.shape[0]:
        raise RequestError(f"row ids range from {index.min()} to {index.max()}; there are {tensor.shape[0]} rows")
    return _restore(tensor, index.astype(np.intp))


def concatenate(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Concatenate tensors along their rows. RequestError when they differ in scheme or width."""
    if not tensors:
        raise RequestError("tensors is empty; expected at least one to join")
    first = tensors[0]
    for other in tensors[1:]:
        if other.scheme != first.scheme or other.shape[1] != first.shape[1]:
            raise RequestError(f"cannot join {other.scheme} of width {other.shape[1]} to {first.scheme} of width "
                               f"{first.shape[1]}; expected the same scheme and width")  # fmt: skip
    zeros = [tensor.zero_points for tensor in tensors if tensor.zero_points is not None]
    return QuantizedTensor(
        first.scheme,
        (sum(tensor.shape[0] for tensor in tensors), first.shape[1]),
        np.concatenate([tensor.packed for tensor in tensors]),
        np.concatenate([tensor.scales for tensor in tensors]),
        np.concatenate(zeros) if zeros else None,
    )


@np.errstate(over="ignore", invalid="ignore")  # scales in files of unknown origin
def _restore(tensor: QuantizedTensor, rows: range | NDArray[np.intp]) -> Array:
    scheme, width = tensor.scheme, tensor.shape[1]
    blocks = scheme.blocks(width)
    values: Array = np.empty((len(rows), width), np.float32)
    step = max(1, CHUNK_VALUES // max(1, blocks * scheme.block_size))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        pick = slice(part.start, part.stop) if isinstance(part, range) else part
        codes = unpack(tensor.packed[pick], scheme.bits, scheme.block_size)
        levels = codes.astype(np.float32)  # [rows, blocks, block_size]
        if tensor.zero_points is None:
            levels -= 2 ** (scheme.bits - 1)
        else:
            levels -= unpack(tensor.zero_points[pick], scheme.bits, blocks)[:, :, None]
        levels *= tensor.scales[pick][:, :, None]
        values[at : at + step] = levels.reshape(len(part), -1)[:, :width]
    return values


def _rectangles(rows: int, blocks: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """Row and block ranges that cover [rows, blocks] in chunks of at most `most` blocks."""
    wide = min(blocks, most)
    tall = max(1, most // max(1, wide))
    for r in range(0, rows, tall):
        for b in range(0, blocks, max(1, wide)):
            yield r, min(rows, r + tall), b, min(blocks, b + wide)
