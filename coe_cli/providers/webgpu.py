"""WebGPU: the plugin is registered with ONNX Runtime GenAI; adapters by Vulkan, memory by the probes of other providers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from coe_cli import package
from coe_cli.core.findings import Finding, error, ok
from coe_cli.core.providers.webgpu import PROVIDER
from coe_cli.errors import DeviceLost
from coe_cli.providers.base import DeviceSettings, GpuMemory, ProviderRuntime

_PLUGIN: Final = "onnxruntime_ep_webgpu"
_ADAPTER: Final = "adapter"
"""Not one of the plugin's options: PCI ids for Vulkan's loader, which lists that adapter first."""

_registered: list[str] = []


class WebGpuRuntime(ProviderRuntime):
    graph_options = ("enableGraphCapture", "enableInt64")

    def offered_by(self, oga: Any) -> bool:
        return find_spec(_PLUGIN) is not None and hasattr(oga, "register_execution_provider_library")

    def details(self) -> dict[str, str]:
        """``usable``: whether ONNX Runtime found an adapter for it; ``adapters``: those that Vulkan has, each with its ids."""
        if find_spec(_PLUGIN) is None:
            return {}
        import onnxruntime

        from coe_cli.probes.vulkan import adapters

        onnxruntime.register_execution_provider_library(PROVIDER.ort_name, _library())
        usable = any(device.ep_name == PROVIDER.ort_name for device in onnxruntime.get_ep_devices())
        listed = [f"{adapter.name}, COE_DEVICE=pci:{adapter.ids}" for adapter in adapters()]
        return {"usable": str(usable), "adapters": "; ".join(listed)}

    def check(self, *, offered: bool, details: Mapping[str, str], platform: str) -> list[Finding]:
        if not offered:
            return []
        if details.get("usable") != "True":
            fix = "Update the graphics driver; on Linux install libvulkan1 and the driver's Vulkan part."
            return [error("webgpu", "no graphics adapter that WebGPU can use was found", fix)]
        return [ok("webgpu", details.get("adapters") or "a graphics adapter was found")]

    def provider_options(self, settings: DeviceSettings) -> dict[str, str]:
        """Runs are recorded where the user wants it and the graph is made for it: that is faster, and every generator more takes
        memory that no later one uses (docs/memory.md).
        """
        options: dict[str, str] = {}
        if settings.pci is not None:
            options[_ADAPTER] = settings.pci
        if not settings.graph_capture:
            options["enableGraphCapture"] = "0"
        return options

    def configure(self, oga: Any, config: Any, options: Mapping[str, str]) -> None:
        """The plugin takes the first adapter, so the loader is told which one that is; other options are the plugin's own.

        Raises:
            DeviceLost: the plugin is not installed.
        """
        if _ADAPTER in options:
            vendor, device = options[_ADAPTER].split(":")
            os.environ["VK_LOADER_DEVICE_SELECT"] = f"0x{vendor}:0x{device}"
        if not _registered:
            _registered.append(_library())
            oga.register_execution_provider_library(PROVIDER.ort_name, _registered[0])
        super().configure(oga, config, {key: value for key, value in options.items() if key != _ADAPTER})

    def open_memory(self, settings: DeviceSettings) -> GpuMemory | None:
        """By Windows' counters, else by NVIDIA's or AMD's driver."""
        if sys.platform == "win32":
            from coe_cli.providers.dml import RUNTIME as DIRECTML

            return DIRECTML.open_memory(settings)
        from coe_cli.probes.amd_sysfs import open_amd
        from coe_cli.providers.cuda import RUNTIME as CUDA

        return CUDA.open_memory(settings) or open_amd()


def _library() -> str:
    try:
        import onnxruntime_ep_webgpu
    except ImportError as problem:
        raise DeviceLost(
            f"the WebGPU plugin cannot be loaded: {problem}", f"Install it: {package.install_command(PROVIDER.extra)}"
        ) from None
    return str(onnxruntime_ep_webgpu.get_library_path())


RUNTIME = WebGpuRuntime(PROVIDER)
