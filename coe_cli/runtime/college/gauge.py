"""How full memory is while one worker answers."""

from __future__ import annotations

from collections.abc import Callable

from coe_cli.core.model_spec import ModelSpec
from coe_cli.core.pressure import pressure
from coe_cli.core.profile import HardwareProfile
from coe_cli.runtime.college.gpu_memory import GpuMemory
from coe_cli.runtime.college.meter import ResidentSetMeter


def memory_gauge(spec: ModelSpec, profile: HardwareProfile) -> Callable[[int], tuple[float, float, str] | None]:
    """A function from the worker's process id to (MB in use, budget in MB, pressure level), or None where unknown.

    The level is that of the pool, the budget less its fixed part, as everywhere.
    """
    reading = _reader(spec)

    def gauge(pid: int) -> tuple[float, float, str] | None:
        used_mb = reading(pid)
        if used_mb is None:
            return None
        pool_mb = profile.vram_budget_mb - profile.fixed_mb
        return used_mb, float(profile.vram_budget_mb), pressure(used_mb, pool_mb, profile.pressure_thresholds).level

    return gauge


def _reader(spec: ModelSpec) -> Callable[[int], float | None]:
    if spec.provider == "cpu":
        return ResidentSetMeter().process_mb
    opened: list[GpuMemory | None] = []

    def on_gpu(pid: int) -> float | None:
        if not opened:
            from coe_cli.runtime.college.gpu_memory import open_gpu
            from coe_cli.runtime.providers import settings_from

            settings = settings_from()
            opened.append(open_gpu(spec.provider, settings.index, settings.luid))
        processes = opened[0].process_mb() if opened[0] is not None else None
        return None if processes is None else processes.get(pid)

    return on_gpu
