"""Words for messages: names that were almost right, nouns that are counted, lists."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_TOLD = 24


def did_you_mean(name: str, known: list[str]) -> str:
    """``"Did you mean `x`?"`` for the nearest known name, or an empty string."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the nearest known names, or the first ``_MOST_TOLD`` of all when none is near."""
    if not known:
        return "None are known."
    more = f" and {len(known) - _MOST_TOLD} more" if len(known) > _MOST_TOLD else ""
    return did_you_mean(name, known) or f"Known: {', '.join(sorted(known)[:_MOST_TOLD])}{more}."


def counted(number: int, noun: str) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_words(mb: float) -> str:
    """Megabytes of 2**20 bytes for people: ``94 MB``, ``1.5 GB``, ``16 GB``, ``31.2 GB``, ``200 GB``."""
    if abs(mb) < 1000:
        return f"{mb:.0f} MB"
    gb = mb / 1024
    return f"{gb:,.0f} GB" if abs(gb) >= 100 else f"{gb:.1f}".removesuffix(".0") + " GB"


def compared_sizes(*sizes_mb: float) -> list[str]:
    """``size_words`` of sizes that one sentence compares: all in whole MB where GB would write different ones alike."""
    words = [size_words(size) for size in sizes_mb]
    whole = [f"{size:,.0f} MB" for size in sizes_mb]
    return words if len(set(words)) == len(set(whole)) else whole


def share_words(used_mb: float, whole_mb: float) -> str:
    """A part of an amount, in the amount's unit: ``240 of 800 MB``, ``0.2 of 3.9 GB``."""
    number, unit = size_words(whole_mb).split()
    part = f"{used_mb:.0f}" if unit == "MB" else f"{used_mb / 1024:.1f}"
    return f"{part} of {number} {unit}"


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
