"""How much of one graphics adapter is in use, by everybody and by each process: NVML for CUDA, PDH for DirectML."""

from __future__ import annotations

import os
from typing import Any, Protocol

from coe_cli.core.model_spec import BYTES_PER_MB
from coe_cli.runtime.probes import ProbeFailed


class GpuMemory(Protocol):
    """One adapter. Sizes in MB; None where the driver does not tell."""

    name: str
    total_mb: float | None

    def used_mb(self) -> float | None:
        """In use by all programs."""
        ...

    def process_mb(self) -> dict[int, float] | None:
        """In use by each process id; a process that uses nothing is missing."""
        ...


class NvmlMemory:
    """An NVIDIA card. ``used_mb`` leaves out what the driver reserves for itself before any program runs."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = _nvml_handle(nvml, index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        name = nvml.nvmlDeviceGetName(self._handle)
        self.name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        self.total_mb: float | None = self._memory()[0]

    def _memory(self) -> tuple[float | None, float | None]:
        nvml = self._nvml
        for version in (getattr(nvml, "nvmlMemory_v2", None), None):
            try:
                arguments = () if version is None else (version,)
                memory = nvml.nvmlDeviceGetMemoryInfo(self._handle, *arguments)
            except (nvml.NVMLError, TypeError):
                continue
            reserved = getattr(memory, "reserved", 0)
            return (memory.total - reserved) / BYTES_PER_MB, memory.used / BYTES_PER_MB
        return None, None

    def used_mb(self) -> float | None:
        return self._memory()[1]

    def process_mb(self) -> dict[int, float] | None:
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return None
        if any(process.usedGpuMemory is None for process in running):
            return None  # Windows' driver model keeps it to itself
        return {process.pid: process.usedGpuMemory / BYTES_PER_MB for process in running}


def _nvml_handle(nvml: Any, index: int, visible: str | None) -> Any:
    """NVML counts all devices, CUDA those that ``CUDA_VISIBLE_DEVICES`` names, by number or UUID."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    name = names[index] if index < len(names) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


class PdhMemory:
    """A DirectML adapter on Windows, by its LUID, from the performance counters."""

    def __init__(self, name: str, luid: int, total_mb: float | None, *, counts_shared: bool) -> None:
        self.name, self.total_mb = name, total_mb
        self._luid, self._counts_shared = luid, counts_shared

    def used_mb(self) -> float | None:
        from coe_cli.runtime.probes import pdh

        try:
            usage = pdh.read_usage().get(self._luid)
        except ProbeFailed:
            return None
        if usage is None or usage.dedicated_bytes is None:
            return None
        shared = usage.shared_bytes or 0 if self._counts_shared else 0
        return (usage.dedicated_bytes + shared) / BYTES_PER_MB

    def process_mb(self) -> dict[int, float] | None:
        from coe_cli.runtime.probes import pdh

        try:
            return pdh.read_process_usage(self._luid, shared=self._counts_shared)
        except ProbeFailed:
            return None


def open_gpu(provider: str, index: int | None = None, luid: tuple[int, int] | None = None) -> GpuMemory | None:
    """The adapter that a worker on ``provider`` uses, or None where its memory cannot be told."""
    if provider == "cuda":
        return _open_nvml(index or 0)
    return _open_pdh(index, luid) if provider == "dml" else None


def _open_nvml(index: int) -> GpuMemory | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return NvmlMemory(pynvml, index)
    except pynvml.NVMLError:
        return None


def _open_pdh(index: int | None, luid: tuple[int, int] | None) -> GpuMemory | None:
    from coe_cli.core.machine import Machine, card
    from coe_cli.runtime.probes.dxgi import DxgiProbe

    probe = DxgiProbe()
    if not probe.available():
        return None
    try:
        adapters = probe.adapters()
    except ProbeFailed:
        return None
    wanted = None if luid is None else (luid[0] & 0xFFFFFFFF) << 32 | luid[1]
    chosen = next((a for a in adapters if wanted is not None and a.luid == wanted), None)
    if chosen is None and index is not None and index < len(adapters):
        chosen = adapters[index]
    chosen = chosen or card(Machine(tuple(adapters), True), "dml")
    if chosen is None or chosen.luid is None:
        return None
    total_mb = chosen.dedicated_mb
    if chosen.integrated and total_mb is not None:
        total_mb += chosen.shared_mb or 0.0
    return PdhMemory(chosen.name, chosen.luid, total_mb, counts_shared=bool(chosen.integrated))
