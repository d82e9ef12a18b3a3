"""The packed arrays mean to onnxruntime's MatMulNBits what they mean to us, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import _pybind_state

from ouro_edge.quant import QuantizedTensor, Scheme, dequantize, quantize

EVERY_BLOCK = (16, 32, 64, 128, 256)
WIDTHS = (200, 576, 1536)  # whole blocks of no size, of up to 64 (SmolLM2's width), of every size


def multiply(tensor: QuantizedTensor, rows: NDArray[np.float32], accuracy_level: int) -> NDArray[Any]:
    """rows [T, K] times the tensor's transpose, by onnxruntime: [T, N]."""
    arrays = {"packed": tensor.packed, "scales": tensor.scales}
    if tensor.zero_points is not None:
        arrays["zero_points"] = tensor.zero_points
    node = helper.make_node(
        "MatMulNBits", ["rows", *arrays], ["out"], domain="com.microsoft", N=tensor.shape[0], K=tensor.shape[1],
        bits=tensor.scheme.bits, block_size=tensor.scheme.block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, tensor.shape[1]])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, tensor.shape[0]])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"rows": rows})[0]


def matrix(rows: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Heavy-tailed values around a mean that is not zero, so that zero points differ between blocks."""
    generator = np.random.default_rng(seed)
    return (generator.standard_t(4, (rows, width)) * 0.02 + generator.normal(size=(rows, 1)) * 0.01).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("block_size", EVERY_BLOCK)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_restores_what_we_restore(bits: int, symmetric: bool, block_size: int, width: int) -> None:
    tensor = quantize(matrix(5, width), Scheme(bits, block_size, symmetric))
    ours = dequantize(tensor)
    # Ones on a diagonal read single weights; a stride keeps it fast and still meets both ends of every block.
    columns = np.unique(np.r_[np.arange(0, width, 7), np.arange(0, width, 16), np.arange(15, width, 16), width - 1])
    identity = np.eye(width, dtype=np.float32)[columns]  # [columns, K]
    theirs = multiply(tensor, identity, accuracy_level=1).T
    np.testing.assert_allclose(theirs, ours[:, columns], rtol=2e-6, atol=1e-9)
    rows = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    np.testing.assert_allclose(multiply(tensor, rows, accuracy_level=0), rows @ ours.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", [Scheme(b, k, s) for b in (4, 8) for k in (32, 128) for s in (True, False)], ids=str)
def test_integer_kernels_read_the_same_weights(scheme: Scheme, width: int) -> None:
    """accuracy_level 4 rounds activations to 8 bits in blocks: one decimal less, but no other weights or padding."""
    tensor = quantize(matrix(16, width), scheme)
    for count in (1, 9):  # one row and many take different kernels
        rows = np.random.default_rng(2).standard_normal((count, width)).astype(np.float32)
        exact = rows @ dequantize(tensor).T
        error = multiply(tensor, rows, accuracy_level=4) - exact
        assert np.linalg.norm(error) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_arrays_have_the_shapes_of_onnxruntimes_own_quantiser(bits: int, symmetric: bool) -> None:
    """Their packed form, read by our dequantize, gives their weights back: same nibbles, same zero points."""
    rows, width, size = 6, 160, 32
    values = matrix(rows, width)
    blocks = width // size
    packed = np.zeros((rows, blocks, size * bits // 8), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    zeros = np.zeros((rows, -(-blocks * bits // 8)), np.uint8)
    theirs = {4: _pybind_state.quantize_matmul_4bits, 8: _pybind_state.quantize_matmul_8bits}[bits]
    theirs(packed, np.ascontiguousarray(values.T), scales, zeros.reshape(-1), size, rows, width, symmetric)
    tensor = QuantizedTensor(
        Scheme(bits, size, symmetric), (rows, width), packed, scales.reshape(rows, blocks), None if symmetric else zeros
    )
    step = np.abs(tensor.scales).repeat(size, axis=1)
    assert (np.abs(dequantize(tensor) - values) <= step * 1.001).all()
    mine = quantize(values, tensor.scheme)
    assert mine.packed.shape == packed.shape and mine.scales.shape == tensor.scales.shape
    assert np.square(dequantize(mine) - values).sum() < np.square(dequantize(tensor) - values).sum()


def test_low_nibble_comes_first_and_padding_is_the_zero_point() -> None:
    values = np.zeros((1, 17), np.float32)
    values[0, :3] = [-8, 7, 3]
    tensor = quantize(values, Scheme(4, 16))
    assert tensor.packed[0, 0, :3].tolist() == [0xF0, 0x8B, 0x88]
    assert tensor.packed[0, 1].tolist() == [0x88] * 8
    assert tensor.scales[0, 0] == 1.0


def test_zero_points_share_bytes_across_blocks_of_a_row() -> None:
    values = np.zeros((2, 48), np.float32)
    values[0, :16], values[0, 16:32], values[0, 32:] = np.arange(16), -np.arange(16), np.arange(16) - 4
    values[1, :16] = np.arange(16) - 1
    tensor = quantize(values, Scheme(4, 16, symmetric=False))
    assert tensor.zero_points is not None
    assert tensor.zero_points[0].tolist() == [0xF0, 0x04]
    assert tensor.zero_points[1, 0] & 15 == 1
    np.testing.assert_array_equal(dequantize(tensor), values)
