"""Read a little of an ONNX graph straight from its protobuf: importing the onnx package costs more than a whole listing.

Field numbers are those of onnx.proto3; the encoding is protobuf's own (varint, 64 bit, length-delimited, 32 bit).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION, _EXTERNAL = 13, 14, 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5


def external_data_sizes(graph: Path) -> dict[str, int]:
    """File name → bytes that the graph reads up to, for each external data file of an ONNX graph.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an ONNX graph.
    """
    sizes: dict[str, int] = {}
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graphs = list(_messages(data, 0, len(data), _MODEL_GRAPH))
        if not graphs:
            raise ValueError(f"{graph} is not an ONNX graph: it has no graph in it")
        for start, end in graphs:
            for tensor in _messages(data, start, end, _GRAPH_INITIALIZER):
                entry = _external_entry(data, *tensor)
                if entry:
                    upto = int(entry.get("offset", 0)) + int(entry.get("length", 0))
                    sizes[entry["location"]] = max(sizes.get(entry["location"], 0), upto)
    return sizes


def _external_entry(data: mmap.mmap, start: int, end: int) -> dict[str, str]:
    entry: dict[str, str] = {}
    is_external = False
    for number, value in _fields(data, start, end):
        if number == _TENSOR_DATA_LOCATION:
            is_external = value == _EXTERNAL
        elif number == _TENSOR_EXTERNAL_DATA and isinstance(value, tuple):
            pair = {
                key: data[span[0] : span[1]].decode() for key, span in _fields(data, *value) if isinstance(span, tuple)
            }
            entry[pair.get(_ENTRY_KEY, "")] = pair.get(_ENTRY_VALUE, "")
    return entry if is_external and "location" in entry else {}


def _messages(data: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return (value for number, value in _fields(data, start, end) if number == wanted and isinstance(value, tuple))


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Field number and value: an integer, or where a length-delimited field starts and ends."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield number, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at, end)
        elif kind in (_I64, _I32):
            size = 8 if kind == _I64 else 4
        else:
            raise ValueError("not protobuf: unknown wire type")
        if number == 0 or at + size > end:
            raise ValueError("not protobuf, or cut off")
        yield number, (at, at + size)
        at += size


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not protobuf, or cut off")
