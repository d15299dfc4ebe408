"""DirectML: options, adapters by DXGI, memory by Windows' performance counters, and which DirectML.dll is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from coe_cli.core.findings import Finding, error, ok, warning
from coe_cli.core.hardware.machine import Adapter, Machine, card, card_mb
from coe_cli.core.providers.dml import PROVIDER, START_HINT
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.probes import ProbeFailed
from coe_cli.providers.base import DeviceSettings, GpuMemory, ProviderRuntime
from coe_cli.providers.installed import installed_versions, reinstall_command

if TYPE_CHECKING:
    from coe_cli.probes.d3d12 import DeviceTrial


_OTHER_WAY: Final = {
    PROVIDER.oga_packages[0]: "the extra winml has a newer ONNX Runtime GenAI on the same DirectML",
    PROVIDER.oga_packages[1]: "the extra directml is what more of coe has been run with",
}


class DirectMLRuntime(ProviderRuntime):
    def details(self) -> dict[str, str]:
        """``package`` that has it; on Windows ``path`` and ``version`` of the DirectML.dll that is loaded."""
        found = {"package": name} if (name := next(iter(installed_versions(PROVIDER.oga_packages)), None)) else {}
        path = loaded_module("DirectML.dll") if sys.platform == "win32" else None
        if path is None:
            return found
        version = file_version(path)
        return {**found, "path": path, **({"version": version} if version else {})}

    def check(self, *, offered: bool, details: Mapping[str, str], platform: str) -> list[Finding]:
        if platform not in PROVIDER.platforms:
            return []
        runtime = details.get("package", PROVIDER.oga_packages[0])
        install = reinstall_command(PROVIDER, [runtime])
        if not offered:
            return [error("directml", "DirectML is not available in this build", install)]
        path = details.get("path")
        if path is None:
            return [warning("directml", "no DirectML.dll is loaded yet", install)]
        where = f"{path}, version {details.get('version', 'unknown')}"
        if "\\windows\\system32" in path.lower():
            return [warning("directml", f"Windows' own DirectML is loaded: {where}", install)]
        return [ok("directml", f"{where}, by {runtime}; {_OTHER_WAY[runtime]} (docs/windows.md)")]

    def check_cards(self, adapters: Sequence[Adapter], *, platform: str) -> list[Finding]:
        """Whether a Direct3D 12 and a DirectML device can be made on each: a child process tries it."""
        if platform not in PROVIDER.platforms or not adapters:
            return []
        from coe_cli.probes.d3d12 import try_devices

        try:
            return [trial_finding(trial) for trial in try_devices()]
        except ProbeFailed as problem:
            return [error("direct3d", str(problem), START_HINT)]

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


def trial_finding(trial: DeviceTrial) -> Finding:
    """An error where no device can be made, with what that means and what to do."""
    if trial.feature_level is None:
        return _refused(f"{trial.adapter}: no Direct3D 12 device can be made", trial.error)
    made = f"{trial.adapter}: a Direct3D 12 device can be made, feature level {trial.feature_level}"
    if trial.directml_level is None:
        return _refused(f"{made}, and no DirectML device", trial.directml_error)
    return ok("direct3d", f"{made}, and a DirectML device, feature level {trial.directml_level}")


def _refused(what: str, text: str | None) -> Finding:
    meaning = PROVIDER.meaning(text or "")
    reason, hint = (meaning.reason, meaning.hint) if meaning is not None else (None, None)
    return error("direct3d", f"{what}: {reason or text or 'no reason given'}", hint or START_HINT)


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
