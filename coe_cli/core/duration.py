"""Spans of time as people write them."""

from __future__ import annotations

import re

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
HOW_TO_WRITE = "Write 300, 30s, 5m, 1h or never."


def parse_duration_s(text: str) -> float | None:
    """`300`, `30s`, `5m`, `1h` in seconds; None for `0`, `-1` and `never`.

    Raises:
        ValueError: it is none of these.
    """
    lowered = text.strip().lower()
    if lowered in ("never", "0", "-1"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", lowered)
    if match is None:
        raise ValueError(f"`{text}` is not a time")
    return float(match[1]) * _UNITS_S[match[2]] or None
