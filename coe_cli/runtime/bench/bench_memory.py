"""Memory of one benchmark row: a settled baseline, the peak of the row's own process, and what other programs hold."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coe_cli.core.bench.bench_figures import own_peak_mb
from coe_cli.core.bench.bench_rows import Range
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import on_host
from coe_cli.providers import runtime_of
from coe_cli.providers.base import GpuMemory
from coe_cli.providers.settings import settings_from
from coe_cli.runtime.college.memory_probe import ResidentSetProbe

_SETTLE_S: Final = 2.0
_SETTLE_KNOWN_S: Final = 0.5
"""Where the system tells processes apart, no peak hangs on the baseline: it is waited for less."""
_SETTLE_READ_S: Final = 0.1
_SETTLED_READS: Final = 3
_SETTLED_MB: Final = 8.0
_FOLLOW_S: Final = 0.05


class DeviceMemory:
    """One device's memory, in MB; None where the system does not tell, as of a device that cannot be asked at all."""

    settle_s = 0.0
    """How long to wait at most for a baseline that has stopped changing."""

    def in_use_mb(self) -> float | None:
        """What all programs use of the device now."""
        return None

    def process_mb(self, pid: int) -> float | None:
        """What one process uses of it now."""
        return None

    def process_peak_mb(self, pid: int) -> float | None:
        """The most that the process has used, as the system remembers it."""
        return None


class HostMemory(DeviceMemory):
    """The system's memory; a process's part is its resident set."""

    settle_s = _SETTLE_KNOWN_S

    def in_use_mb(self) -> float | None:
        import psutil

        memory = psutil.virtual_memory()
        return float(memory.total - memory.available) / BYTES_PER_MB

    def process_mb(self, pid: int) -> float | None:
        return ResidentSetProbe().process_mb(pid)

    def process_peak_mb(self, pid: int) -> float | None:
        import psutil

        if sys.platform == "win32":
            with contextlib.suppress(psutil.Error):
                return float(psutil.Process(pid).memory_info().peak_wset) / BYTES_PER_MB
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None


class CardMemory(DeviceMemory):
    """A graphics adapter."""

    settle_s = _SETTLE_S

    def __init__(self, gpu: GpuMemory) -> None:
        self._gpu = gpu

    def in_use_mb(self) -> float | None:
        return self._gpu.used_mb()

    def process_mb(self, pid: int) -> float | None:
        """None where the driver keeps it to itself, and in a container, where it knows other process numbers."""
        processes = self._gpu.process_mb()
        return None if processes is None else processes.get(pid)


def device_memory(provider: Provider) -> DeviceMemory:
    """That of ``provider``'s device on this machine."""
    if on_host(provider):
        return HostMemory()
    gpu = runtime_of(provider).open_memory(settings_from())
    return DeviceMemory() if gpu is None else CardMemory(gpu)


class RowMemory:
    """Follows one row: made before its process starts, ``follow`` while it runs, ``finish`` before it ends, ``close`` after.

    What the system tells of the process itself is believed; else the device's memory in use above the baseline is taken.
    """

    def __init__(self, device: DeviceMemory) -> None:
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
    readings: list[float] = []
    deadline = time.monotonic() + within_s
    while (value := read()) is not None:
        readings = [*readings, value][-_SETTLED_READS:]
        calm = len(readings) == _SETTLED_READS and max(readings) - min(readings) <= _SETTLED_MB
        if calm or time.monotonic() > deadline:
            return value
        time.sleep(_SETTLE_READ_S)
    return None


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
