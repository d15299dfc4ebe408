"""CUDA: options, NVIDIA's libraries, memory by NVML, and the bandwidth of a card."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from coe_cli.core.providers.cuda import PROVIDER
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import DeviceLost
from coe_cli.probes.nvidia import read_memory
from coe_cli.providers.bandwidth import COPY_BYTES, LEAST_BYTES, best_gb_per_s
from coe_cli.providers.base import DeviceSettings, GpuMemory, MeasuresBandwidth, ProviderRuntime

_COPIES_AT_ONCE: Final = 8
_LIBRARIES: Final = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}


class CudaRuntime(ProviderRuntime, MeasuresBandwidth):
    def session_options(self, threads: int) -> dict[str, str | int | bool]:
        """Each weight is allocated by itself: from the arena, the same model took between 5302 and 6422 MB from one load to
        the next, and without it 5356 each time (docs/memory.md).
        """
        return {"session.use_device_allocator_for_initializers": "1"}

    def provider_options(self, settings: DeviceSettings) -> dict[str, str]:
        """``device_id``, and ``arena_extend_strategy`` as a number (a name fails)."""
        options: dict[str, str] = {}
        if settings.index is not None:
            options["device_id"] = str(settings.index)
        if settings.arena_as_requested:
            options["arena_extend_strategy"] = "1"
        return options

    def configure(self, oga: Any, config: Any, options: Mapping[str, str]) -> None:
        """Load CUDA's libraries from NVIDIA's Python packages, where pip puts them; without those the system's are used."""
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import onnxruntime

            onnxruntime.preload_dlls()
        super().configure(oga, config, options)

    def open_memory(self, settings: DeviceSettings) -> GpuMemory | None:
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return NvmlMemory(pynvml, settings.index or 0)
        except pynvml.NVMLError:
            return None

    def copy_gb_per_s(self, settings: DeviceSettings) -> float:
        try:
            driver = ctypes.CDLL(_LIBRARIES.get(sys.platform, "libcuda.so.1"))
        except OSError as error:
            raise DeviceLost(f"the CUDA driver cannot be loaded: {error}", "See `coe doctor`.") from None
        return copy_on_cuda(driver, settings.index or 0)


class NvmlMemory:
    """An NVIDIA card. ``used_mb`` leaves out what the driver reserves for itself before any program runs."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = _nvml_handle(nvml, index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        name = nvml.nvmlDeviceGetName(self._handle)
        self.name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        self.total_mb: float | None = self._memory()[0]

    def _memory(self) -> tuple[float | None, float | None]:
        memory = read_memory(self._nvml, self._handle)
        return (None, None) if memory is None else (memory.total_mb - (memory.reserved_mb or 0.0), memory.used_mb)

    def used_mb(self) -> float | None:
        return self._memory()[1]

    def process_mb(self) -> dict[int, float] | None:
        try:
            # Vulkan's, with all that CUDA has of them
            running = list(self._nvml.nvmlDeviceGetGraphicsRunningProcesses(self._handle))
            running += self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
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


def copy_on_cuda(driver: Any, device: int = 0, size: int = COPY_BYTES) -> float:
    """10**9 bytes/s of copies inside the memory of CUDA device ``device``; ``driver`` is the loaded driver library.

    Raises:
        DeviceLost: the driver refuses.
    """

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(driver, name)(*arguments):
            raise DeviceLost(f"{name} failed with {code}", "See `coe doctor`.")

    handle, context = ctypes.c_int(), ctypes.c_void_p()
    source, target = ctypes.c_uint64(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(handle), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    call("cuCtxSetCurrent", context)
    while True:
        try:
            call("cuMemAlloc_v2", ctypes.byref(source), ctypes.c_size_t(size))
            call("cuMemAlloc_v2", ctypes.byref(target), ctypes.c_size_t(size))
            break
        except DeviceLost:
            if source.value:
                call("cuMemFree_v2", source)
                source = ctypes.c_uint64()
            size //= 2
            if size < LEAST_BYTES:
                raise

    def copy() -> None:
        for _ in range(_COPIES_AT_ONCE):
            call("cuMemcpyDtoD_v2", target, source, ctypes.c_size_t(size))
        call("cuCtxSynchronize")

    return best_gb_per_s(copy, 2 * size * _COPIES_AT_ONCE)


RUNTIME = CudaRuntime(PROVIDER)
