"""Reads the ONNX graphs of an exported model as lists of protobuf fields, without the onnx package.

A protobuf parser ignores fields that it does not know and merges fields that occur twice, so another parser may see
another graph. Here each message may contain only the fields that the exporter writes, single ones at most once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_VARINT_BITS = 70  # ten groups of seven bits hold 64


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    message: str = ""  # the type of a nested message
    repeated: bool = False


# Numbers from onnx.proto3; other fields of these messages (functions, subgraphs, sparse values) are never written.
_MESSAGES: dict[str, dict[int, _Field]] = {
    "ModelProto": {
        1: _Field("ir_version"), 2: _Field("producer_name"), 7: _Field("graph", "GraphProto"),
        8: _Field("opset_import", "OperatorSetIdProto", True),
    },
    "OperatorSetIdProto": {1: _Field("domain"), 2: _Field("version")},
    "GraphProto": {
        1: _Field("node", "NodeProto", True), 2: _Field("name"), 5: _Field("initializer", "TensorProto", True),
        11: _Field("input", "ValueInfoProto", True), 12: _Field("output", "ValueInfoProto", True),
    },
    "NodeProto": {
        1: _Field("input", repeated=True), 2: _Field("output", repeated=True), 3: _Field("name"), 4: _Field("op_type"),
        5: _Field("attribute", "AttributeProto", True), 7: _Field("domain"),
    },
    "AttributeProto": {1: _Field("name"), 2: _Field("f"), 3: _Field("i"), 4: _Field("s"), 20: _Field("type")},
    "TensorProto": {
        1: _Field("dims", repeated=True), 2: _Field("data_type"), 7: _Field("int64_data", repeated=True),
        8: _Field("name"), 9: _Field("raw_data"), 13: _Field("external_data", "StringStringEntryProto", True),
        14: _Field("data_location"),
    },
    "StringStringEntryProto": {1: _Field("key"), 2: _Field("value")},
    "ValueInfoProto": {1: _Field("name"), 2: _Field("type", "TypeProto")},
    "TypeProto": {1: _Field("tensor_type", "TensorType")},
    "TensorType": {1: _Field("elem_type"), 2: _Field("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: _Field("dim", "Dimension", True)},
    "Dimension": {1: _Field("dim_value"), 2: _Field("dim_param")},
}  # fmt: skip


class Message:
    """The fields of one message by name: an int, bytes or a Message; a list where the field may be repeated."""

    def __init__(self, kind: str, data: memoryview) -> None:
        self.kind = kind
        self._values: dict[str, Any] = {field.name: [] for field in _MESSAGES[kind].values() if field.repeated}
        for number, wire_type, value in _fields(data):
            field = _MESSAGES[kind].get(number)
            if field is None or (field.message and wire_type != _BYTES):
                raise ValueError(f"field {number} of {kind} is unknown")
            if field.message:
                value = Message(field.message, value)
            elif wire_type != _VARINT:
                value = bytes(value)
            if field.repeated:
                self._values[field.name].append(value)
            elif field.name in self._values:
                raise ValueError(f"{kind} has {field.name} twice")
            else:
                self._values[field.name] = value

    def __getitem__(self, name: str) -> Any:
        """A list, or a message. ValueError when the message is absent."""
        if name not in self._values:
            raise ValueError(f"{self.kind} has no {name}")
        return self._values[name]

    def number(self, name: str) -> int:
        """An integer field; 0 when absent."""
        value = self._values.get(name, 0)
        if not isinstance(value, int):
            raise ValueError(f"{name} of {self.kind} is not a number")
        return value

    def data(self, name: str) -> bytes:
        """A field of bytes; empty when absent."""
        value = self._values.get(name, b"")
        if not isinstance(value, bytes):
            raise ValueError(f"{name} of {self.kind} is not a string")
        return value

    def text(self, name: str) -> str:
        """A string field; "" when absent."""
        return self.data(name).decode()

    def numbers(self, name: str) -> tuple[int, ...]:
        """A repeated integer field, packed or not."""
        found: list[int] = []
        for value in self._values[name]:
            if isinstance(value, int):
                found.append(value)
                continue
            at, data = 0, memoryview(value)
            while at < len(data):
                number, at = _varint(data, at)
                found.append(number)
        return tuple(found)


def read_model(data: bytes) -> Message:
    """The ModelProto of a file. ValueError when it has fields that ouro-edge does not write or is cut off."""
    return Message("ModelProto", memoryview(data))


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field: an int, or the bytes of a string, message, float or packed list."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} is unknown")
        if not 0 <= size <= len(data) - at:
            raise ValueError("the file is cut off")
        yield number, wire_type, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A signed 64-bit number and the position after it."""
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        if at == len(data):
            raise ValueError("the file is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            value &= (1 << 64) - 1
            return (value - (1 << 64) if value >> 63 else value), at
    raise ValueError("a number has more than 64 bits")
