"""How much memory the workers' device has in use, as far as it can be told."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import on_host
from coe_cli.providers import runtime_of
from coe_cli.providers.base import GpuMemory
from coe_cli.providers.settings import settings_from


class MemoryProbe(Protocol):
    """Measures memory in MB; None where it cannot be measured."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        """Memory in use that counts against the pool."""
        ...

    def process_mb(self, pid: int) -> float | None:
        """Memory of one worker."""
        ...


class ResidentSetProbe:
    """The CPU provider: the resident sets of the workers. Other programs have their own memory there."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        return sum(self.process_mb(pid) or 0.0 for pid in pids)

    def process_mb(self, pid: int) -> float | None:
        if sys.platform == "linux":  # psutil takes longer to import than a first token may wait
            return _resident_mb(pid)
        import psutil

        try:
            return float(psutil.Process(pid).memory_info().rss) / BYTES_PER_MB
        except psutil.Error:
            return None


class GpuProbe:
    """A card: the workers' memory, and as much of other programs' as the budget does not leave to them.

    ``slack_mb`` is what others may use without taking from the pool: the card beyond the budget, and the budget's fixed
    part. Where the driver does not tell processes apart, what was in use at the start counts as the others'.
    """

    def __init__(self, gpu: GpuMemory, slack_mb: float) -> None:
        self._gpu, self._slack_mb = gpu, max(0.0, slack_mb)
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
        return own_mb + max(0.0, in_use_mb - own_mb - self._slack_mb)

    def process_mb(self, pid: int) -> float | None:
        processes = self._gpu.process_mb()
        return None if processes is None else processes.get(pid)


class Unmeasured:
    """A device whose memory in use cannot be told: what is reserved counts."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        return None

    def process_mb(self, pid: int) -> float | None:
        return None


def memory_probe_for(profile: HardwareProfile) -> MemoryProbe:
    """The memory probe of the profile's device.

    Raises:
        UsageError: ``COE_DEVICE`` cannot be read.
    """
    if on_host(profile.provider):
        return ResidentSetProbe()
    settings = settings_from()
    gpu = runtime_of(profile.provider).open_memory(settings)
    if gpu is None:
        return Unmeasured()
    excess_mb = max(0.0, gpu.total_mb - profile.vram_budget_mb) if gpu.total_mb is not None else 0.0
    return GpuProbe(gpu, excess_mb + profile.fixed_mb)


def _resident_mb(pid: int) -> float | None:
    import os

    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / BYTES_PER_MB
