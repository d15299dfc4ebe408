"""Words for messages: names that were almost right, nouns that are counted, lists."""

from __future__ import annotations

from collections.abc import Sequence


def did_you_mean(name: str, known: list[str]) -> str:
    """``"Did you mean `x`?"`` for the nearest known name, or an empty string."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the nearest known names, or all of them when none is near."""
    return did_you_mean(name, known) or (f"Known: {', '.join(sorted(known))}." if known else "None are known.")


def counted(number: int, noun: str) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_words(mb: float) -> str:
    """Megabytes of 2**20 bytes for people: ``94 MB``, ``1.5 GB``, ``25 GB``."""
    if mb < 1000:
        return f"{mb:.0f} MB"
    return f"{mb / 1024:.1f} GB" if mb < 10_000 else f"{mb / 1024:.0f} GB"


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
