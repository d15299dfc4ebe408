"""System memory: what the CPU provider works in, and a second bound for integrated graphics."""

from __future__ import annotations

from msgspec import Struct

from coe_cli.core.models.model_spec import BYTES_PER_MB


class SystemMemory(Struct, frozen=True):
    total_mb: float | None
    free_mb: float | None


def read_memory() -> SystemMemory:
    """Installed memory and what can still be had without swapping."""
    import psutil

    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError):
        return SystemMemory(None, None)
    return SystemMemory(memory.total / BYTES_PER_MB, memory.available / BYTES_PER_MB)
