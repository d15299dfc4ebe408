"""Streams for readers of archives, which read as much at once as a hostile header asks them to."""

from __future__ import annotations

import io
import lzma
from typing import IO, Any, Final, Protocol

_SKIP_BYTES: Final = 2**20
_XZ_MEMORY_BYTES: Final = 256 * 2**20
"""xz's own most (-9) takes 65 MB to unpack."""


class Readable(Protocol):
    """What archives are read from."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


class TooLarge(Exception):
    """More was asked of a stream than it may give."""


class BoundedStream(io.RawIOBase):
    """``source``, of which at most ``most_bytes`` may be passed over in all and ``most_at_once`` read at once.

    With ``most_bytes`` None the source is a file, where seeking costs nothing; another one goes forward only.
    """

    def __init__(self, source: Readable, most_bytes: int | None, most_at_once: int) -> None:
        super().__init__()
        self._source, self._most_bytes, self._most_at_once = source, most_bytes, most_at_once
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell() if self._most_bytes is None else self._at

    def read(self, size: int | None = -1) -> bytes:
        """
        Raises:
            TooLarge: more than ``most_at_once`` is asked for, or ``most_bytes`` are passed.
        """
        most = self._most_at_once
        if size is None or size < 0:
            size = most + 1
        elif size > most:
            raise TooLarge(f"it has a header of {size} bytes")
        content = self._source.read(size)
        if len(content) > most:
            raise TooLarge(f"it has a header of more than {most} bytes")
        self._advance(len(content))
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """
        Raises:
            TooLarge: ``most_bytes`` are passed.
            ValueError: it lies behind, in a source that goes forward only.
        """
        if self._most_bytes is None:
            return self._source.seek(offset, whence)
        if whence != io.SEEK_SET or offset < self._at:
            raise ValueError("it cannot be read in one go")
        while self._at < offset:
            skipped = len(self._source.read(min(_SKIP_BYTES, offset - self._at)))
            if not skipped:
                break
            self._advance(skipped)
        return self._at

    def _advance(self, count: int) -> None:
        self._at += count
        if self._most_bytes is not None and self._at > self._most_bytes:
            raise TooLarge(f"it unpacks to more than {self._most_bytes} bytes")


class XzStream(io.RawIOBase):
    """The content of one .xz stream, unpacked in bounded memory.

    Raises:
        lzma.LZMAError: it is damaged, or takes more memory than any file that ``xz`` makes.
    """

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None and size >= 0
        parts, left = [], size
        while left and not self._unpacker.eof:
            packed = self._source.read(_SKIP_BYTES) if self._unpacker.needs_input else b""
            if self._unpacker.needs_input and not packed:
                raise EOFError("it ends in the middle")
            part = self._unpacker.decompress(packed, left)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
