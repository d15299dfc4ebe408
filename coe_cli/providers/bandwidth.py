"""How fast a copy is: the best of as many as fit a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from coe_cli.core.units import BYTES_PER_MB

COPY_BYTES: Final = 256 * BYTES_PER_MB
LEAST_BYTES: Final = 64 * BYTES_PER_MB
_MEASURE_S: Final = 0.3


def best_gb_per_s(copy: Callable[[], None], moved_bytes: int) -> float:
    """10**9 bytes/s of the best ``copy``, which moves ``moved_bytes``."""
    copy()
    best_s, end = float("inf"), time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end or best_s == float("inf"):
        begin = time.perf_counter()
        copy()
        best_s = min(best_s, time.perf_counter() - begin)
    return moved_bytes / best_s / 1e9
