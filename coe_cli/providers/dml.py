"""DirectML: options, adapters by DXGI, memory by Windows' performance counters, and which DirectML.dll is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from coe_cli import package
from coe_cli.core.findings import Finding, error, ok, warning
from coe_cli.core.hardware.machine import Machine, card, card_mb
from coe_cli.core.providers.dml import PROVIDER
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.probes import ProbeFailed
from coe_cli.providers.base import DeviceSettings, GpuMemory, ProviderRuntime


class DirectMLRuntime(ProviderRuntime):
    def details(self) -> dict[str, str]:
        """``path`` and ``version`` of the DirectML.dll that is loaded, on Windows."""
        path = loaded_module("DirectML.dll") if sys.platform == "win32" else None
        if path is None:
            return {}
        version = file_version(path)
        return {"path": path, **({"version": version} if version else {})}

    def check(self, *, offered: bool, details: Mapping[str, str], platform: str) -> list[Finding]:
        if platform not in PROVIDER.platforms:
            return []
        install = package.install_command(PROVIDER.extra).replace("install", "install --force-reinstall", 1)
        if not offered:
            return [error("directml", "DirectML is not available in this build", install)]
        path = details.get("path")
        if path is None:
            return [warning("directml", "no DirectML.dll is loaded yet", install)]
        where = f"{path}, version {details.get('version', 'unknown')}"
        if "\\windows\\system32" in path.lower():
            return [warning("directml", f"Windows' own DirectML is loaded: {where}", install)]
        return [ok("directml", where)]

    def provider_options(self, settings: DeviceSettings) -> dict[str, str]:
        """``luid`` ("HIGH:LOW") or ``device_index``; ``enable_graph_capture`` is read since after 0.13.1, which ignores it."""
        options: dict[str, str] = {}
        if settings.luid is not None:
            options["luid"] = f"{settings.luid[0]}:{settings.luid[1]}"
        elif settings.index is not None:
            options["device_index"] = str(settings.index)
        if settings.graph_capture is False:
            options["enable_graph_capture"] = "0"
        return options

    def card_mb(self) -> float | None:
        from coe_cli.probes.dxgi import DxgiProbe

        try:
            return (
                card_mb(Machine(tuple(DxgiProbe().adapters()), True), PROVIDER.name)
                if DxgiProbe().available()
                else None
            )
        except ProbeFailed:
            return None

    def open_memory(self, settings: DeviceSettings) -> GpuMemory | None:
        return _open_pdh(settings.index, settings.luid)


class PdhMemory:
    """A DirectML adapter on Windows, by its LUID, from the performance counters."""

    def __init__(self, name: str, luid: int, total_mb: float | None, *, counts_shared: bool) -> None:
        self.name, self.total_mb = name, total_mb
        self._luid, self._counts_shared = luid, counts_shared

    def used_mb(self) -> float | None:
        from coe_cli.probes import pdh

        try:
            usage = pdh.read_usage().get(self._luid)
        except ProbeFailed:
            return None
        if usage is None or usage.dedicated_bytes is None:
            return None
        shared = usage.shared_bytes or 0 if self._counts_shared else 0
        return (usage.dedicated_bytes + shared) / BYTES_PER_MB

    def process_mb(self) -> dict[int, float] | None:
        from coe_cli.probes import pdh

        try:
            return pdh.read_process_usage(self._luid, shared=self._counts_shared)
        except ProbeFailed:
            return None


def _open_pdh(index: int | None, luid: tuple[int, int] | None) -> GpuMemory | None:
    from coe_cli.probes.dxgi import DxgiProbe

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
    chosen = chosen or card(Machine(tuple(adapters), True), PROVIDER.name)
    if chosen is None or chosen.luid is None:
        return None
    total_mb = chosen.dedicated_mb
    if chosen.integrated and total_mb is not None:
        total_mb += chosen.shared_mb or 0.0
    return PdhMemory(chosen.name, chosen.luid, total_mb, counts_shared=bool(chosen.integrated))


RUNTIME = DirectMLRuntime(PROVIDER)


def loaded_module(name: str) -> str | None:
    """The file that this process has loaded as ``name`` (Windows)."""
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.GetModuleHandleW.restype = ctypes.c_void_p
    kernel32.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    kernel32.GetModuleFileNameW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32]
    handle = kernel32.GetModuleHandleW(name)
    if not handle:
        return None
    buffer = ctypes.create_unicode_buffer(32768)
    return buffer.value if kernel32.GetModuleFileNameW(handle, buffer, len(buffer)) else None


def file_version(path: str) -> str | None:
    """The four numbers of a DLL's fixed version information (Windows: VS_FIXEDFILEINFO)."""
    import ctypes

    version = ctypes.WinDLL("version", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    size = version.GetFileVersionInfoSizeW(ctypes.c_wchar_p(path), None)
    if not size:
        return None
    data = ctypes.create_string_buffer(size)
    if not version.GetFileVersionInfoW(ctypes.c_wchar_p(path), 0, size, data):
        return None
    pointer, length = ctypes.c_void_p(), ctypes.c_uint()
    if not version.VerQueryValueW(data, ctypes.c_wchar_p("\\"), ctypes.byref(pointer), ctypes.byref(length)):
        return None
    assert pointer.value is not None
    high, low = (ctypes.c_uint32 * 4).from_address(pointer.value)[2:4]
    return f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"
