"""An ONNX graph read straight from the file's protobuf records: what memory arithmetic and file checks need of it.

Only lengths and small fields are looked at: weights are stepped over, and the ``onnx`` package is not imported. Field
numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

_ELEMENT_BYTES: Final = {
    1: 4,
    2: 1,
    3: 1,
    4: 2,
    5: 2,
    6: 4,
    7: 8,
    9: 1,
    10: 2,
    11: 8,
    12: 4,
    13: 8,
    16: 2,
    21: 0.5,
    22: 0.5,
}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class GraphFacts(Struct, frozen=True):
    """What one decoder graph says about its memory; sizes in bytes, None where the graph does not say.

    ``block_bytes`` is 4-byte values, one per quantisation block, of all quantised matrices together; ``folded_bytes``
    are quantised weights that the session copies at load because a Reshape feeds them to the embedding as well.
    """

    cache_element_bytes: int | None = None
    prunes_logits: bool | None = None
    intermediate_size: int | None = None
    qkv_size: int | None = None
    quantized_bytes: int = 0
    block_bytes: int = 0
    largest_quantized_bytes: int = 0
    largest_matrix_elements: int = 0
    embedding_row_bytes: int = 0
    embedding_bytes: int = 0
    folded_bytes: int = 0
    other_bytes: int = 0


def read_graph(path: Path) -> GraphFacts | None:
    """The facts of the graph in ``path``, or None when it is not a readable ONNX decoder."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _facts(data)
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError):
        return None


def external_data_sizes(path: Path) -> dict[str, int]:
    """File name → bytes that the graph reads up to, for each external data file of an ONNX graph.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an ONNX graph.
    """
    sizes: dict[str, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graph = next((span for number, span in _fields(data, 0, len(data)) if number == 7), None)
            if graph is None or graph[1] < 0:
                raise ValueError("there is no graph in it")
            for number, span in _fields(data, *graph):
                entry = _external_entry(data, *span) if number == 5 else {}
                if entry:
                    upto = int(entry.get("offset", 0)) + int(entry.get("length", 0))
                    sizes[entry["location"]] = max(sizes.get(entry["location"], 0), upto)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} is not an ONNX graph: {error}") from None
    return sizes


def _external_entry(data: Any, start: int, end: int) -> dict[str, str]:
    """Keys and values (13) of a TensorProto whose data_location (14) is EXTERNAL; else nothing."""
    entry: dict[str, str] = {}
    external = False
    for number, span in _fields(data, start, end):
        if number == 14:
            external = span == (1, -1)
        elif number == 13:
            pair = {key: _text(data, inner) for key, inner in _fields(data, *span) if inner[1] >= 0}
            entry[pair.get(1, "")] = pair.get(2, "")
    return entry if external and "location" in entry else {}


def _facts(data: mmap.mmap) -> GraphFacts | None:
    graph = next((span for number, span in _fields(data, 0, len(data)) if number == 7), None)
    if graph is None:
        return None
    initializers: dict[str, float] = {}
    row_bytes: dict[str, int] = {}
    cache: int | None = None
    prunes: bool | None = None
    matrices: list[tuple[int, int, int, int]] = []
    quantized: set[str] = set()
    embeddings: set[str] = set()
    reshaped: set[str] = set()
    qkv: int | None = None
    for number, (start, end) in _fields(data, *graph):
        if number == 1:
            inputs, operator, span = _node(data, start, end)
            if operator == "MatMulNBits":
                numbers = _integer_attributes(data, *span)
                matrices.append((numbers["K"], numbers["N"], numbers.get("bits", 4), numbers.get("block_size", 32)))
                quantized.add(inputs[1])
                if qkv is None and "qkv" in inputs[1]:
                    qkv = numbers["N"]
            elif operator == "Gather":
                embeddings.add(inputs[0])
            elif operator == "Reshape":
                reshaped.add(inputs[0])
        elif number == 5:
            name, dims, kind = _tensor(data, start, end)
            size = float(_ELEMENT_BYTES.get(kind, 4))
            for dim in dims:
                size *= dim
            initializers[name] = size
            row_bytes[name] = int(size // dims[0]) if len(dims) == 2 and dims[0] else 0
        elif number == 11 and cache is None:
            name, kind, _ = _value(data, start, end)
            if name.startswith("past_key_values.") or name.startswith("past_"):
                cache = int(_ELEMENT_BYTES.get(kind, 0)) or None
        elif number == 12:
            name, _, dims_out = _value(data, start, end)
            if name == "logits" and len(dims_out) == 3:
                prunes = dims_out[1] == 1
    tables = {name for name in embeddings if row_bytes.get(name) and initializers[name] >= 2**20}
    known = [size for name, size in initializers.items() if name not in quantized and name not in tables]
    sizes = [k * n * bits // 8 for k, n, bits, _ in matrices]
    hidden = matrices[0][0] if matrices else 0
    return GraphFacts(
        cache_element_bytes=cache,
        prunes_logits=prunes,
        intermediate_size=max((k for k, n, _, _ in matrices if n == hidden), default=None),
        qkv_size=qkv,
        quantized_bytes=sum(sizes),
        block_bytes=sum(4 * n * -(-k // block) for k, n, _, block in matrices),
        largest_quantized_bytes=max(sizes, default=0),
        largest_matrix_elements=max((k * n for k, n, _, _ in matrices), default=0),
        embedding_row_bytes=max((row_bytes[name] for name in tables), default=0),
        embedding_bytes=round(sum(initializers[name] for name in tables)),
        folded_bytes=round(sum(initializers.get(name, 0) for name in reshaped & quantized)),
        other_bytes=round(sum(known)),
    )


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


def _fields(data: Any, position: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Field number and span of every length-delimited field; a number is given as ``(value, -1)``."""
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


def _text(data: Any, span: tuple[int, int]) -> str:
    return bytes(data[span[0] : span[1]]).decode("utf-8")


def _node(data: Any, start: int, end: int) -> tuple[list[str], str, tuple[int, int]]:
    """Inputs (1) and operator (4) of a NodeProto, and its span for the attributes."""
    inputs: list[str] = []
    operator = ""
    for number, span in _fields(data, start, end):
        if number == 1:
            inputs.append(_text(data, span))
        elif number == 4:
            operator = _text(data, span)
    return inputs, operator, (start, end)


def _integer_attributes(data: Any, start: int, end: int) -> dict[str, int]:
    """Attributes (5) of a NodeProto that hold a number: name (1), i (3)."""
    found: dict[str, int] = {}
    for number, span in _fields(data, start, end):
        if number == 5:
            name, value = "", None
            for inner, inner_span in _fields(data, *span):
                if inner == 1:
                    name = _text(data, inner_span)
                elif inner == 3:
                    value = inner_span[0]
            if value is not None:
                found[name] = value
    return found


def _tensor(data: Any, start: int, end: int) -> tuple[str, list[int], int]:
    """Name (8), dims (1, packed or not) and data type (2) of a TensorProto."""
    name, kind = "", 0
    dims: list[int] = []
    for number, span in _fields(data, start, end):
        if number == 1:
            if span[1] < 0:
                dims.append(span[0])
            else:
                position = span[0]
                while position < span[1]:
                    value, position = _varint(data, position)
                    dims.append(value)
        elif number == 2:
            kind = span[0]
        elif number == 8:
            name = _text(data, span)
    return name, dims, kind


def _value(data: Any, start: int, end: int) -> tuple[str, int, list[int | None]]:
    """Name (1), element type and dims (None where symbolic) of a ValueInfoProto: type (2) → tensor_type (1)."""
    name, kind = "", 0
    dims: list[int | None] = []
    for number, span in _fields(data, start, end):
        if number == 1:
            name = _text(data, span)
        elif number == 2:
            for type_number, type_span in _fields(data, *span):
                if type_number != 1:
                    continue
                for tensor_number, tensor_span in _fields(data, *type_span):
                    if tensor_number == 1:
                        kind = tensor_span[0]
                    elif tensor_number == 2:
                        dims = [_dim(data, *s) for n, s in _fields(data, *tensor_span) if n == 1]
    return name, kind, dims


def _dim(data: Any, start: int, end: int) -> int | None:
    return next((span[0] for number, span in _fields(data, start, end) if number == 1), None)
