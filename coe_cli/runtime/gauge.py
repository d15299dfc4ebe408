"""How full memory is while one worker answers."""

from __future__ import annotations

from collections.abc import Callable

from coe_cli.core.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.profile import HardwareProfile


def memory_gauge(spec: ModelSpec, profile: HardwareProfile) -> Callable[[int], tuple[float, float, str] | None]:
    """A function from the worker's process id to (MB in use, budget in MB, pressure level), or None where unknown.

    On the CPU that is the worker's resident set; on a GPU it is not known to this process.
    """

    def on_cpu(pid: int) -> tuple[float, float, str] | None:
        import psutil

        try:
            used_mb = psutil.Process(pid).memory_info().rss / BYTES_PER_MB
        except psutil.Error:
            return None
        return used_mb, float(profile.vram_budget_mb), _level(used_mb, profile)

    return on_cpu if spec.provider == "cpu" else lambda pid: None


def _level(used_mb: float, profile: HardwareProfile) -> str:
    ratio = used_mb / profile.vram_budget_mb
    thresholds = profile.pressure_thresholds
    for name, limit in (
        ("critical", thresholds.critical),
        ("high", thresholds.high),
        ("elevated", thresholds.elevated),
    ):
        if ratio > limit:
            return name
    return "normal"
