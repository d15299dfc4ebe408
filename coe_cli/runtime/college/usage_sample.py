"""How full memory is while one worker answers."""

from __future__ import annotations

from collections.abc import Callable

from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.memory.pressure import pressure
from coe_cli.core.providers import on_host
from coe_cli.providers.base import GpuMemory
from coe_cli.runtime.college.memory_probe import ResidentSetProbe


def usage_sampler(provider: Provider, profile: HardwareProfile) -> Callable[[int], tuple[float, float, str] | None]:
    """A function from the worker's process id to (MB in use, budget in MB, pressure level), or None where unknown.

    The level is that of the pool, the budget less its fixed part, as everywhere.
    """
    reading = _reader(provider)

    def sample(pid: int) -> tuple[float, float, str] | None:
        used_mb = reading(pid)
        if used_mb is None:
            return None
        pool_mb = profile.vram_budget_mb - profile.fixed_mb
        return used_mb, float(profile.vram_budget_mb), pressure(used_mb, pool_mb, profile.pressure_thresholds).level

    return sample


def _reader(provider: Provider) -> Callable[[int], float | None]:
    if on_host(provider):
        return ResidentSetProbe().process_mb
    opened: list[GpuMemory | None] = []

    def on_gpu(pid: int) -> float | None:
        if not opened:
            from coe_cli.providers import runtime_of
            from coe_cli.providers.settings import settings_from

            settings = settings_from()
            opened.append(runtime_of(provider).open_memory(settings))
        processes = opened[0].process_mb() if opened[0] is not None else None
        return None if processes is None else processes.get(pid)

    return on_gpu
