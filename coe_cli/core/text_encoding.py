"""Text of a file or a pipe: UTF-8, or what a byte order mark says, as PowerShell and Notepad write it."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK_BYTES = 4
"""Bytes at the beginning that tell the encoding."""


def encoding_of(head: bytes) -> str:
    """The codec for text that begins with ``head``; it takes the mark away."""
    return next((codec for mark, codec in _MARKS if head.startswith(mark)), "utf-8")


def decode_text(data: bytes, errors: str = "strict") -> str:
    """``data`` as text, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is not in that encoding.
    """
    return data.decode(encoding_of(data[:MARK_BYTES]), errors)
