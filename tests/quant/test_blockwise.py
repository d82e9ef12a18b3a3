"""Whole matrices: chunks, threads, row ranges, gathering, joining, and memory that is mapped and never copied."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ouro_edge.errors import BundleError, RequestError
from ouro_edge.quant import QuantizedTensor, Scheme, blockwise, concatenate, dequantize, dequantize_rows, quantize

SCHEMES = [Scheme(bits, size, symmetric) for bits in (4, 8) for size in (16, 128) for symmetric in (True, False)]


def matrix(rows: int = 37, width: int = 200, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def assert_same(left: QuantizedTensor, right: QuantizedTensor) -> None:
    assert left.scheme == right.scheme and left.shape == right.shape
    np.testing.assert_array_equal(left.packed, right.packed)
    np.testing.assert_array_equal(left.scales, right.scales)
    assert (left.zero_points is None) == (right.zero_points is None)
    if left.zero_points is not None and right.zero_points is not None:
        np.testing.assert_array_equal(left.zero_points, right.zero_points)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("chunk", [1, 300, 1000, 4096])
def test_result_depends_neither_on_chunks_nor_on_threads(
    scheme: Scheme, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = matrix(11)
    whole = quantize(values, scheme, threads=1)
    rows = concatenate([quantize(values[at : at + 5], scheme) for at in range(0, len(values), 5)])
    restored = dequantize(whole)
    monkeypatch.setattr(blockwise, "CHUNK_VALUES", chunk)
    assert_same(quantize(values, scheme, threads=3), whole)
    assert_same(rows, whole)
    np.testing.assert_array_equal(dequantize(whole), restored)
    # Strided and unaligned input is the same input.
    wide = np.zeros((11, 2 * 200 + 1), np.float32)
    wide[:, 1::2] = values
    assert_same(quantize(wide[:, 1::2], scheme), whole)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_row_ranges_and_gathering_are_parts_of_the_whole(scheme: Scheme) -> None:
    tensor = quantize(matrix(), scheme)
    whole = dequantize(tensor)
    assert whole.shape == (37, 200) and whole.dtype == np.float32
    np.testing.assert_array_equal(dequantize(tensor, 3, 30), whole[3:30])
    np.testing.assert_array_equal(dequantize(tensor, 36), whole[36:])
    assert dequantize(tensor, 4, 4).shape == (0, 200)
    ids = [36, 0, 5, 5]
    np.testing.assert_array_equal(dequantize_rows(tensor, ids), whole[ids])
    np.testing.assert_array_equal(dequantize_rows(tensor, np.array(ids, np.uint16)), whole[ids])
    assert dequantize_rows(tensor, []).shape == (0, 200)


def test_gathering_from_mapped_files_copies_only_its_rows(tmp_path: Path) -> None:
    tensor = quantize(matrix(8000, 256), Scheme(8, 64, symmetric=False))
    assert tensor.zero_points is not None
    arrays = dict[str, np.ndarray](packed=tensor.packed, scales=tensor.scales, zero_points=tensor.zero_points)
    for name, array in arrays.items():
        array.tofile(tmp_path / name)
    mapped = QuantizedTensor(
        tensor.scheme,
        tensor.shape,
        **{name: np.memmap(tmp_path / name, array.dtype, "r", shape=array.shape) for name, array in arrays.items()},
    )
    tracemalloc.start()
    rows = dequantize_rows(mapped, [7999, 7])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, dequantize(tensor)[[7999, 7]])
    assert type(rows) is np.ndarray
    assert peak < sum(array.nbytes for array in arrays.values()) / 20


def test_memory_beyond_input_and_output_is_small() -> None:
    values = matrix(3000, 1000)
    tracemalloc.start()
    tensor = quantize(values, Scheme(4, 32, symmetric=False), threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.zero_points is not None
    stored = sum(array.nbytes for array in (tensor.packed, tensor.scales, tensor.zero_points))
    assert peak < stored + values.nbytes / 2


@pytest.mark.parametrize("bounds", [(-1, 3), (5, 4), (0, 38), (38, None)])
def test_refuses_row_ranges_that_are_not_there(bounds: tuple[int, int | None]) -> None:
    with pytest.raises(RequestError, match="not a part of 37 rows"):
        dequantize(quantize(matrix(), Scheme(4)), *bounds)


@pytest.mark.parametrize("ids", [[-1], [0, 37], [0.5], [[1]]])
def test_refuses_row_ids_that_are_not_there(ids: Any) -> None:
    with pytest.raises(RequestError, match="row ids"):
        dequantize_rows(quantize(matrix(), Scheme(8)), ids)


@pytest.mark.parametrize("values", [np.zeros(8, np.float32), np.zeros((2, 2, 2), np.float32), np.zeros((2, 8))])
def test_refuses_what_is_no_float32_matrix(values: Any) -> None:
    with pytest.raises(RequestError, match="expected a float32 matrix"):
        quantize(values, Scheme(4))


def test_joins_rows_only_of_one_kind() -> None:
    parts = [quantize(matrix(rows, seed=rows), Scheme(4, 16, False)) for rows in (3, 1, 4)]
    joined = concatenate(parts)
    assert joined.shape == (8, 200)
    np.testing.assert_array_equal(dequantize(joined), np.concatenate([dequantize(part) for part in parts]))
    for other in (quantize(matrix(2), Scheme(4, 16)), quantize(matrix(2, 208), Scheme(4, 16, False))):
        with pytest.raises(RequestError, match="cannot join"):
            concatenate([*parts, other])
    with pytest.raises(RequestError, match="tensors is empty"):
        concatenate([])


@pytest.mark.parametrize("name", ["packed", "scales", "zero_points"])
def test_refuses_arrays_of_another_shape_or_type(name: str) -> None:
    tensor = quantize(matrix(), Scheme(4, 16, False))
    arrays: dict[str, Any] = {key: getattr(tensor, key) for key in ("packed", "scales", "zero_points")}
    for wrong in (arrays[name][:-1], arrays[name].astype(np.float64)):
        with pytest.raises(BundleError, match=f"{name} is .*expected"):
            QuantizedTensor(tensor.scheme, tensor.shape, **{**arrays, name: wrong})
    with pytest.raises(BundleError, match="zero points"):
        QuantizedTensor(Scheme(4, 16), tensor.shape, **arrays)
    with pytest.raises(BundleError, match="zero points"):
        QuantizedTensor(tensor.scheme, tensor.shape, **{**arrays, "zero_points": None})
