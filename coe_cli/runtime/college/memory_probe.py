"""How much memory the workers' device has in use, as far as it can be told."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.memory.pressure import pressure
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import on_host
from coe_cli.providers import runtime_of
from coe_cli.providers.base import GpuMemory
from coe_cli.providers.settings import settings_from


class MemoryProbe:
    """Measures one device, in MB; None where the system does not tell, as of a device that cannot be asked at all."""

    name: str | None = None
    settle_s = 0.0
    """Seconds in which memory in use stops changing after a process has ended."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        """Memory in use that counts against the pool of the workers ``pids``."""
        return None

    def in_use_mb(self) -> float | None:
        """What all programs use."""
        return None

    def process_mb(self, pid: int) -> float | None:
        """What one worker uses."""
        return None

    def process_peak_mb(self, pid: int) -> float | None:
        """The most that the worker has used, as the system remembers it."""
        return None


class RssProbe(MemoryProbe):
    """The CPU provider: the resident sets of the workers. Other programs have their own memory there."""

    settle_s = 0.5
    """Processes are told apart, so no figure of theirs hangs on it."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        return sum(self.process_mb(pid) or 0.0 for pid in pids)

    def in_use_mb(self) -> float | None:
        import psutil

        memory = psutil.virtual_memory()
        return float(memory.total - memory.available) / BYTES_PER_MB

    def process_mb(self, pid: int) -> float | None:
        if sys.platform == "linux":  # psutil takes longer to import than a first token may wait
            return _rss_mb(pid)
        import psutil

        try:
            return float(psutil.Process(pid).memory_info().rss) / BYTES_PER_MB
        except (psutil.Error, OSError):
            return None

    def process_peak_mb(self, pid: int) -> float | None:
        if sys.platform == "win32":
            import psutil

            with contextlib.suppress(psutil.Error, OSError):
                return float(psutil.Process(pid).memory_info().peak_wset) / BYTES_PER_MB
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None


class GpuProbe(MemoryProbe):
    """A card: the workers' memory, and as much of other programs' as the budget does not leave to them.

    ``slack_mb`` is what others may use without taking from the pool: the card beyond the budget, and the budget's fixed
    part. Where the driver does not tell processes apart, what was in use at the start counts as the others'.
    """

    settle_s = 2.0

    def __init__(self, gpu: GpuMemory, slack_mb: float = 0.0) -> None:
        self._gpu, self.slack_mb = gpu, slack_mb
        self.name, self.total_mb = gpu.name, gpu.total_mb
        self._at_start_mb = gpu.used_mb() or 0.0

    def used_mb(self, pids: Iterable[int]) -> float | None:
        in_use_mb = self._gpu.used_mb()
        if in_use_mb is None:
            return None
        processes = self._gpu.process_mb()
        if processes is None:
            own_mb = max(0.0, in_use_mb - self._at_start_mb)
        else:
            own_mb = sum(processes.get(pid, 0.0) for pid in pids)
        return own_mb + max(0.0, in_use_mb - own_mb - max(0.0, self.slack_mb))

    def in_use_mb(self) -> float | None:
        return self._gpu.used_mb()

    def process_mb(self, pid: int) -> float | None:
        """None where the driver keeps it to itself, and in a container, where it knows other process numbers."""
        processes = self._gpu.process_mb()
        return None if processes is None else processes.get(pid)


def device_probe(provider: Provider) -> MemoryProbe:
    """The probe of the device that workers of ``provider`` use.

    Raises:
        UsageError: ``COE_DEVICE`` cannot be read.
    """
    if on_host(provider):
        return RssProbe()
    gpu = runtime_of(provider).open_memory(settings_from())
    return MemoryProbe() if gpu is None else GpuProbe(gpu)


def memory_probe_for(profile: HardwareProfile) -> MemoryProbe:
    """The same with what the profile's budget leaves to other programs.

    Raises:
        UsageError: ``COE_DEVICE`` cannot be read.
    """
    probe = device_probe(profile.provider)
    if isinstance(probe, GpuProbe):
        excess_mb = max(0.0, probe.total_mb - profile.vram_budget_mb) if probe.total_mb is not None else 0.0
        probe.slack_mb = excess_mb + profile.fixed_mb
    return probe


def usage_sampler(provider: Provider, profile: HardwareProfile) -> Callable[[int], tuple[float, float, str] | None]:
    """A function from the worker's process id to (MB in use, budget in MB, pressure level), or None where unknown.

    The level is that of the pool, the budget less its fixed part, as everywhere.
    """
    probe = cache(lambda: device_probe(provider))  # opening a driver takes a moment: when it is first asked

    def sample(pid: int) -> tuple[float, float, str] | None:
        used_mb = probe().process_mb(pid)
        if used_mb is None:
            return None
        pool_mb = profile.vram_budget_mb - profile.fixed_mb
        return used_mb, float(profile.vram_budget_mb), pressure(used_mb, pool_mb, profile.pressure_thresholds).level

    return sample


def _rss_mb(pid: int) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / BYTES_PER_MB
