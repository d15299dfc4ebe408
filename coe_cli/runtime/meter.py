"""How much memory the workers' device has in use, as far as it can be told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from coe_cli.core.model_spec import BYTES_PER_MB


class Meter(Protocol):
    """Measures memory in MB; None where it cannot be measured."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        """Memory in use that counts against the pool."""
        ...

    def process_mb(self, pid: int) -> float | None:
        """Memory of one worker."""
        ...


class ResidentSetMeter:
    """The CPU provider: the resident sets of the workers. Other programs have their own memory there."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        return sum(self.process_mb(pid) or 0.0 for pid in pids)

    def process_mb(self, pid: int) -> float | None:
        import psutil

        try:
            return float(psutil.Process(pid).memory_info().rss) / BYTES_PER_MB
        except psutil.Error:
            return None


class Unmeasured:
    """A device whose memory in use cannot be told: what is reserved counts."""

    def used_mb(self, pids: Iterable[int]) -> float | None:
        return None

    def process_mb(self, pid: int) -> float | None:
        return None
