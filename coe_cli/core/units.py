"""Units of memory."""

from __future__ import annotations

from typing import Final

BYTES_PER_MB: Final = 2**20
"""1 MB in profiles, plans and tables is 2**20 bytes."""


def power_of_two(size: int) -> int:
    """The least power of two that is not below ``size``; 0 stays 0."""
    return 1 << (size - 1).bit_length() if size > 0 else 0
