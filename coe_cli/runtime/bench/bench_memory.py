"""Memory of one benchmark row: a settled baseline, the peak of the row's own process, and what other programs hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from coe_cli.core.bench.bench_figures import own_peak_mb
from coe_cli.core.bench.bench_rows import Range
from coe_cli.runtime.college.memory_probe import MemoryProbe

_SETTLE_READ_S: Final = 0.1
_SETTLED_READS: Final = 3
_SETTLED_MB: Final = 8.0
_FOLLOW_S: Final = 0.05


class RowMemory:
    """Follows one row: made before its process starts, ``follow`` while it runs, ``finish`` before it ends, ``close`` after.

    What the system tells of the process itself is believed; else the device's memory in use above the baseline is taken.
    """

    def __init__(self, device: MemoryProbe) -> None:
        self._device = device
        self._before_mb = settled_mb(device.in_use_mb, device.settle_s)
        self._after_mb: float | None = None
        self._process_peak_mb: float | None = None
        self._device_peak_mb: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, pid: int) -> None:
        """Look at the process now and then, unless the system remembers its peak."""
        if self._device.process_peak_mb(pid) is None:
            self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
            self._thread.start()

    def finish(self, pid: int) -> None:
        """Take the peak while the process is still there."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._take(pid)
        else:
            self._process_peak_mb = self._device.process_peak_mb(pid)

    def close(self) -> None:
        """Look once more when the process has gone, for what others hold by now; settled where the peak hangs on it."""
        self._stop.set()
        read = self._device.in_use_mb
        self._after_mb = settled_mb(read, self._device.settle_s) if self._process_peak_mb is None else read()

    @property
    def peak_mb(self) -> float | None:
        if self._process_peak_mb is not None:
            return self._process_peak_mb
        if self._device_peak_mb is None or self._before_mb is None or self._after_mb is None:
            return None
        return own_peak_mb(self._device_peak_mb, self._before_mb, self._after_mb)

    @property
    def others(self) -> Range | None:
        """The least and the most that other programs held, before and after."""
        known = [value for value in (self._before_mb, self._after_mb) if value is not None]
        return Range(round(min(known), 1), round(max(known), 1)) if known else None

    def _watch(self, pid: int) -> None:
        while not self._stop.wait(_FOLLOW_S):
            self._take(pid)

    def _take(self, pid: int) -> None:
        self._process_peak_mb = _larger(self._process_peak_mb, self._device.process_mb(pid))
        if self._process_peak_mb is None:
            self._device_peak_mb = _larger(self._device_peak_mb, self._device.in_use_mb())


def settled_mb(read: Callable[[], float | None], within_s: float) -> float | None:
    """Memory in use when it has stopped changing, or after ``within_s`` as it then is: drivers free it late."""
    samples: list[float] = []
    deadline = time.monotonic() + within_s
    while (value := read()) is not None:
        samples = [*samples, value][-_SETTLED_READS:]
        calm = len(samples) == _SETTLED_READS and max(samples) - min(samples) <= _SETTLED_MB
        if calm or time.monotonic() > deadline:
            return value
        time.sleep(_SETTLE_READ_S)
    return None


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
