"""Records of an ONNX file, read straight from its protobuf: nodes, tensors, values. Weights are stepped over.

The ``onnx`` package takes longer to import than all of ``coe vram plan``. Field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

Span = tuple[int, int]
"""Begin and end of a record in the file; a number is given as ``(value, -1)``."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_EXTERNAL: Final = 1


class Node(NamedTuple):
    """A NodeProto; ``numbers`` are its attributes that hold an integer. ONNX's own ``domain`` is empty."""

    operator: str
    inputs: list[str]
    numbers: dict[str, int]
    name: str = ""
    domain: str = ""


class Tensor(NamedTuple):
    """A TensorProto without its data. ``external`` has its location, offset and length, where it lies in another file."""

    name: str
    dims: list[int]
    element_type: int
    external: dict[str, str]


class Value(NamedTuple):
    """A ValueInfoProto; a dimension that has a name and no number is None."""

    name: str
    element_type: int
    dims: list[int | None]


class Records(NamedTuple):
    """One graph, as the spans of its records by field number; they are read when they are asked for.

    ``opsets`` are the versions of each domain's operators; ONNX's own domain is empty.
    """

    data: Any
    spans: dict[int, list[Span]]
    opsets: dict[str, int]

    def nodes(self) -> Iterator[Node]:
        return (_node(self.data, span) for span in self.spans.get(1, ()))

    def initializers(self) -> Iterator[Tensor]:
        return (_tensor(self.data, span) for span in self.spans.get(5, ()))

    def inputs(self) -> Iterator[Value]:
        return (_value(self.data, span) for span in self.spans.get(11, ()))

    def outputs(self) -> Iterator[Value]:
        return (_value(self.data, span) for span in self.spans.get(12, ()))

    def values(self) -> Iterator[Value]:
        """What the graph says of values between its nodes."""
        return (_value(self.data, span) for span in self.spans.get(13, ()))


def graph_records(data: Any) -> Records:
    """The records of the graph in an ONNX file whose bytes (or memory map) are ``data``.

    Raises:
        ValueError, IndexError, KeyError, TypeError, OverflowError: it is not an ONNX graph; also while its records are read.
    """
    graph, opsets = None, {}
    for number, span in _fields(data, (0, len(data))):
        if number == 7:
            graph = graph or span
        elif number == 8:
            domain, version = _opset(data, span)
            opsets[domain] = version
    if graph is None or graph[1] < 0:
        raise ValueError("there is no graph in it")
    spans: dict[int, list[Span]] = {}
    for number, span in _fields(data, graph):
        spans.setdefault(number, []).append(span)
    return Records(data, spans, opsets)


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("not a protobuf number")


def _fields(data: Any, span: Span) -> Iterator[tuple[int, Span]]:
    """Field number and span of every length-delimited field and number of a record."""
    position, end = span
    if end < 0:
        raise ValueError("a number stands where a record should")
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        if key >> 3 == 0:
            raise ValueError("not a protobuf record")
        if wire == _LENGTH:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("a record ends beyond its parent")
            yield key >> 3, (position, position + length)
            position += length
        elif wire == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, (value, -1)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("not a protobuf record")
        if position > end:
            raise ValueError("a record ends beyond its parent")


def _text(data: Any, span: Span) -> str:
    return bytes(data[span[0] : span[1]]).decode("utf-8")


def _opset(data: Any, span: Span) -> tuple[str, int]:
    """Domain (1) and version (2) of an OperatorSetIdProto."""
    domain, version = "", 0
    for number, field in _fields(data, span):
        if number == 1:
            domain = _domain(data, field)
        elif number == 2:
            version = field[0]
    return domain, version


def _domain(data: Any, span: Span) -> str:
    """ONNX's own domain may also be written out."""
    domain = _text(data, span)
    return "" if domain == "ai.onnx" else domain


def _node(data: Any, span: Span) -> Node:
    """Inputs (1), name (3), operator (4), attributes (5: name 1, i 3) and domain (7) of a NodeProto."""
    inputs: list[str] = []
    operator = node_name = domain = ""
    numbers: dict[str, int] = {}
    for number, field in _fields(data, span):
        if number == 1:
            inputs.append(_text(data, field))
        elif number == 3:
            node_name = _text(data, field)
        elif number == 4:
            operator = _text(data, field)
        elif number == 7:
            domain = _domain(data, field)
        elif number == 5:
            name, value = "", None
            for inner, inner_field in _fields(data, field):
                if inner == 1:
                    name = _text(data, inner_field)
                elif inner == 3:
                    value = inner_field[0]
            if value is not None:
                numbers[name] = value
    return Node(operator, inputs, numbers, node_name, domain)


def _tensor(data: Any, span: Span) -> Tensor:
    """Dims (1, packed or not), data type (2), name (8), external data (13) and where the data lies (14) of a TensorProto."""
    name, element_type, is_external = "", 0, False
    dims: list[int] = []
    entry: dict[str, str] = {}
    for number, field in _fields(data, span):
        if number == 1:
            if field[1] < 0:
                dims.append(field[0])
            else:
                position = field[0]
                while position < field[1]:
                    value, position = _varint(data, position)
                    dims.append(value)
        elif number == 2:
            element_type = field[0]
        elif number == 8:
            name = _text(data, field)
        elif number == 13:
            pair = {key: _text(data, inner) for key, inner in _fields(data, field) if inner[1] >= 0}
            entry[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:
            is_external = field == (_EXTERNAL, -1)
    return Tensor(name, dims, element_type, entry if is_external and "location" in entry else {})


def _value(data: Any, span: Span) -> Value:
    """Name (1) and type (2) of a ValueInfoProto; tensor_type (1) has the element type (1) and the shape (2)."""
    name, element_type = "", 0
    dims: list[int | None] = []
    for number, field in _fields(data, span):
        if number == 1:
            name = _text(data, field)
        elif number == 2:
            for type_number, type_field in _fields(data, field):
                if type_number != 1:
                    continue
                for tensor_number, tensor_field in _fields(data, type_field):
                    if tensor_number == 1:
                        element_type = tensor_field[0]
                    elif tensor_number == 2:
                        dims = [_dim(data, inner) for key, inner in _fields(data, tensor_field) if key == 1]
    return Value(name, element_type, dims)


def _dim(data: Any, span: Span) -> int | None:
    return next((field[0] for number, field in _fields(data, span) if number == 1), None)
