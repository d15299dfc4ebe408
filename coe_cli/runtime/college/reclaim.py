"""Whether the memory of a process that has ended is back: drivers free it a moment later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_WAIT_S = 2.0
_LOOK_S = 0.02
_ENOUGH = 0.95


async def until_reclaimed(
    used_mb: Callable[[], float | None], before_mb: float | None, own_mb: float | None
) -> tuple[float | None, float | None]:
    """How far memory in use has fallen from ``before_mb``, and what is in use now; None where it cannot be measured.

    Looks until nearly ``own_mb``, the process's own, is back, for two seconds at most.
    """
    deadline = time.monotonic() + _WAIT_S
    now_mb = used_mb()
    while before_mb is not None and now_mb is not None and own_mb and before_mb - now_mb < _ENOUGH * own_mb:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_LOOK_S)
        now_mb = used_mb()
    return (None if before_mb is None or now_mb is None else before_mb - now_mb), now_mb
