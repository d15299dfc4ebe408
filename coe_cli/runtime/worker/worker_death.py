"""The error that a worker's end is: killed from outside, out of memory, or lost with its device."""

from __future__ import annotations

from coe_cli.core.process_exit import ExitKind
from coe_cli.errors import CoeError, DeviceLost, OutOfMemory
from coe_cli.runtime.process_log import ProcessLog


class KilledFromOutside(DeviceLost):
    """The worker was ended by somebody else: by hand, or by the system when it ran out of memory."""


def worker_death(name: str, code: int | None, log: ProcessLog, *, by_us: bool = False) -> CoeError:
    """What to say of a worker that ended with ``code``, or is gone without one. ``by_us``: coe killed it."""
    if code is None:
        return DeviceLost(f"{name} is gone", "Run it again.")
    ended, words = log.explain(code)
    message = f"{name} {ended.text}" + (f": {words}" if words else "")
    if ended.kind is ExitKind.OUT_OF_MEMORY:
        return OutOfMemory(message, "Close other programs, or choose a smaller profile (-p minimal).")
    kind = KilledFromOutside if ended.kind is ExitKind.KILLED and not by_us else DeviceLost
    return kind(message, "Run it again; COE_DEBUG=1 shows what it printed.")
