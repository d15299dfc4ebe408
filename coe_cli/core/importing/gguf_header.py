"""Reads a GGUF header: metadata and tensor table, without the weights (github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Every count, length and offset comes from outside: each is checked against the bytes that are left before anything is
allocated, so that a hostile header costs no more memory than its own size.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from coe_cli.core.importing.ggml import BlockType, block_type, type_name

_MAGIC: Final = b"GGUF"
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_NESTING = 2
_MAX_ALIGNMENT = 2**20
_MAX_NAME_BYTES: Final = 1024
_MAX_TEXT_BYTES: Final = 16 * 2**20
_MAX_VALUES: Final = 2**24
"""In all arrays together: four vocabularies of four million. A value takes up to ten times its bytes in memory."""
_MAX_THINGS: Final = 100_000
"""Tensors, and metadata entries. The largest models have some thousand."""
_SMALLEST_ENTRY: Final = 13
"""Bytes of the shortest metadata entry: the length of its key, a type and one byte."""
_SMALLEST_TENSOR: Final = 24
"""Bytes of the shortest line of the tensor table: a length, a number of dimensions, a type, an offset."""


class GgufTensor(Struct, frozen=True):
    """``shape`` is rows first (GGUF stores it reversed); ``offset`` counts from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int

    @property
    def block(self) -> BlockType | None:
        """Its type; None if that cannot be imported."""
        return block_type(self.type_number)

    @property
    def type_name(self) -> str:
        return type_name(self.type_number)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class GgufHeader(Struct, frozen=True):
    """``metadata`` holds plain Python values; strings may hold surrogates where the file's bytes are not UTF-8."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._values_left = _MAX_VALUES
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        if size > self.left:
            raise ValueError("it ends in the middle of its header")
        (value,) = struct.unpack_from(code, self._data, self.at)
        self.at += size
        return value

    def count(self, smallest: int, most: int, what: str) -> int:
        """A number of things, at most ``most``, that take at least ``smallest`` bytes each."""
        value = int(self.scalar("<Q"))
        if value * smallest > self.left:
            raise ValueError(f"its header counts {value} {what}, more than there are bytes")
        if value > most:
            raise ValueError(f"its header counts {value} {what}; at most {most} can be read")
        return value

    def name(self) -> str:
        """The name of a metadata entry or tensor."""
        name = self.text(_MAX_NAME_BYTES)
        if not name.isprintable() or not name:
            raise ValueError(f"its header has the name {name[:80]!a}")
        return name

    def text(self, most: int = _MAX_TEXT_BYTES) -> str:
        length = self.count(1, most, "characters")
        start, self.at = self.at, self.at + length
        return bytes(self._data[start : self.at]).decode("utf-8", "surrogateescape")

    def value(self, kind: int, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or nesting == _MAX_NESTING:
            raise ValueError(f"its header has a value of unknown type {kind}")
        inner = int(self.scalar("<I"))
        if inner in _SCALARS:
            code = _SCALARS[inner]
            size = struct.calcsize(code)
            count = self._values(size)
            found = struct.unpack_from(f"<{count}{code[1]}", self._data, self.at)
            self.at += count * size
            return list(found)
        count = self._values(8)
        if inner == _STRING:
            return self._texts(count)
        return [self.value(inner, nesting + 1) for _ in range(count)]

    def _values(self, size: int) -> int:
        """The length of an array."""
        count = self.count(size, self._values_left, "values")
        self._values_left -= count
        return count

    def _texts(self, count: int) -> list[str]:
        """``count`` strings: as ``text`` does it, but half a million of them in a fifth of a second."""
        found, at, data, end, length_at = [], self.at, self._data, len(self._data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            if start > end or (at := start + length_at(data, at)[0]) > end:
                raise ValueError("it ends in the middle of its header")
            if at - start > _MAX_TEXT_BYTES:
                raise ValueError(f"its header has a text of {at - start} bytes")
            found.append(str(data[start:at], "utf-8", "surrogateescape"))
        self.at = at
        return found


def parse_gguf(data: memoryview) -> GgufHeader:
    """Read the header of the GGUF file whose content (all of it, as a memory map gives it) is ``data``.

    Raises:
        ValueError: it is no GGUF file of version 2 or 3, or it is truncated or contradicts itself; the message says how.
    """
    if bytes(data[:4]) != _MAGIC:
        raise ValueError("it does not begin as a GGUF file does")
    cursor = _Cursor(data)
    cursor.at = 4
    version = int(cursor.scalar("<I"))
    if version not in (2, 3):
        raise ValueError(f"it is GGUF version {version}; versions 2 and 3 can be read")
    tensor_count = cursor.count(_SMALLEST_TENSOR, _MAX_THINGS, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(_SMALLEST_ENTRY, _MAX_THINGS, "metadata entries")):
        key = cursor.name()
        if key in metadata:
            raise ValueError(f"its header has `{key}` twice")
        metadata[key] = cursor.value(int(cursor.scalar("<I")))
    table = [_tensor_line(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {ascii(alignment)[:40]}")
    start = -(-cursor.at // alignment) * alignment
    return GgufHeader(version, metadata, _placed(table, start, len(data), alignment))


def _tensor_line(cursor: _Cursor) -> GgufTensor:
    name = cursor.name()
    dimensions = int(cursor.scalar("<I"))
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor `{name[:80]}` has {dimensions} dimensions")
    shape = tuple(int(cursor.scalar("<Q")) for _ in range(dimensions))[::-1]
    number = int(cursor.scalar("<I"))
    return GgufTensor(name, shape, number, int(cursor.scalar("<Q")))


def _placed(table: list[GgufTensor], start: int, size: int, alignment: int) -> tuple[GgufTensor, ...]:
    """The tensors with their offsets from the beginning of the file: aligned, inside of it, and beside each other."""
    found, end = [], start
    for tensor in sorted(table, key=lambda tensor: tensor.offset):
        name, offset = tensor.name[:80], start + tensor.offset
        if tensor.offset % alignment:
            raise ValueError(f"tensor `{name}` does not begin at a multiple of {alignment}")
        if offset < end:
            raise ValueError(f"tensor `{name}` lies over the one before it")
        end = offset + _bytes_of(tensor)
        if end > size:
            raise ValueError(f"it is truncated: tensor `{name}` lies beyond its end")
        found.append(replace(tensor, offset=offset))
    if len({tensor.name for tensor in found}) < len(found):
        raise ValueError("its header has a tensor twice")
    return tuple(found)


def _bytes_of(tensor: GgufTensor) -> int:
    """The bytes of a tensor; at least one where its type is unknown."""
    if min(tensor.shape) < 1:
        raise ValueError(f"tensor `{tensor.name[:80]}` is empty")
    block = tensor.block
    if block is None:
        return 1
    if tensor.shape[-1] % block.elements:
        raise ValueError(f"a row of tensor `{tensor.name[:80]}` is not whole blocks of {block.name}")
    return tensor.elements // block.elements * block.bytes
