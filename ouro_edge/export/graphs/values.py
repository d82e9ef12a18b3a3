"""Descriptions of a graph's values: inputs and outputs, and arrays that are stored outside of it."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from ouro_edge.bundle.directory import DATA_FILE
from ouro_edge.bundle.manifest import StoredArray
from ouro_edge.bundle.tensors import ArraySpec

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def value_info(name: str, dtype: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], shape)


def tensor_type(dtype: str) -> int:
    """The ONNX type of a NumPy type."""
    return int(_ONNX_TYPES[dtype])


def external(name: str, array: ArraySpec) -> onnx.TensorProto:
    """An initializer whose values are not in the graph: in the bundle's data file, or passed by name."""
    tensor = TensorProto(name=name, data_type=_ONNX_TYPES[array.dtype], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=DATA_FILE)  # a location is required, also where it is not read
    if isinstance(array, StoredArray):
        tensor.external_data.add(key="offset", value=str(array.offset))
        tensor.external_data.add(key="length", value=str(array.size))
    return tensor
