"""How full memory is while one worker answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.memory.pressure import pressure
from coe_cli.runtime.college.memory_probe import device_probe


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
