"""Windows: adapters, their LUIDs and memory sizes from DXGI, called through COM with ctypes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final

from coe_cli.core.hardware.machine import Adapter
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import ProbeFailed, pdh

FLAG_SOFTWARE: Final = 2
ERROR_NOT_FOUND: Final = 0x887A0002

# Slots in the vtables, counted from dxgi.h: IUnknown 3, IDXGIObject 4, IDXGIFactory 5, IDXGIAdapter 3.
RELEASE: Final = 2
FACTORY1_ENUM_ADAPTERS1: Final = 12
ADAPTER1_GET_DESC1: Final = 10


class Guid(ctypes.Structure):
    _fields_ = (
        ("data1", ctypes.c_uint32),
        ("data2", ctypes.c_uint16),
        ("data3", ctypes.c_uint16),
        ("data4", ctypes.c_uint8 * 8),
    )


class Luid(ctypes.Structure):
    _fields_ = (("low_part", ctypes.c_uint32), ("high_part", ctypes.c_int32))


class AdapterDesc1(ctypes.Structure):
    """DXGI_ADAPTER_DESC1; WCHAR is 16 bits wide whatever the compiler of this Python says."""

    _fields_ = (
        ("description", ctypes.c_uint16 * 128),
        ("vendor_id", ctypes.c_uint32),
        ("device_id", ctypes.c_uint32),
        ("sub_sys_id", ctypes.c_uint32),
        ("revision", ctypes.c_uint32),
        ("dedicated_video_memory", ctypes.c_size_t),
        ("dedicated_system_memory", ctypes.c_size_t),
        ("shared_system_memory", ctypes.c_size_t),
        ("adapter_luid", Luid),
        ("flags", ctypes.c_uint32),
    )


IID_FACTORY1: Final = Guid(
    0x770AAE78, 0xF26F, 0x4DBA, (ctypes.c_uint8 * 8)(0xA8, 0x29, 0x25, 0x3C, 0x83, 0xD1, 0xB3, 0x87)
)


class DxgiProbe:
    """Adapters from DXGI, with what all programs use of them from the performance counters."""

    name = "dxgi"

    def available(self) -> bool:
        return sys.platform == "win32"

    def adapters(self) -> list[Adapter]:
        """Hardware adapters in DXGI's order.

        Raises:
            ProbeFailed: DXGI cannot be loaded or refuses.
        """
        found = [adapter for desc in _descriptions() if (adapter := adapter_from(desc)) is not None]
        try:
            return with_usage(found, pdh.read_usage())
        except ProbeFailed:
            return found


def adapter_from(desc: AdapterDesc1) -> Adapter | None:
    """The adapter that ``desc`` describes, or None for a software renderer."""
    if desc.flags & FLAG_SOFTWARE:
        return None
    text = bytes(desc.description).decode("utf-16-le", errors="replace").split("\0", 1)[0]
    return Adapter(
        name=text.strip() or "unnamed adapter",
        probe="dxgi",
        dedicated_mb=(desc.dedicated_video_memory + desc.dedicated_system_memory) / BYTES_PER_MB,
        shared_mb=desc.shared_system_memory / BYTES_PER_MB,
        luid=(desc.adapter_luid.high_part & 0xFFFFFFFF) << 32 | desc.adapter_luid.low_part,
        identity=f"pci:{desc.vendor_id:04x}:{desc.device_id:04x}",
    )


def with_usage(adapters: list[Adapter], usage: dict[int, pdh.AdapterUsage]) -> list[Adapter]:
    """The adapters with what the counters say of their LUIDs; an adapter without a counter stays unknown."""
    from msgspec import structs

    return [
        structs.replace(
            adapter,
            used_mb=None if seen.dedicated_bytes is None else seen.dedicated_bytes / BYTES_PER_MB,
            shared_used_mb=None if seen.shared_bytes is None else seen.shared_bytes / BYTES_PER_MB,
        )
        if adapter.luid is not None and (seen := usage.get(adapter.luid)) is not None
        else adapter
        for adapter in adapters
    ]


def _descriptions() -> list[AdapterDesc1]:
    found: list[AdapterDesc1] = []
    each_adapter(lambda adapter, desc: found.append(desc))
    return found


def each_adapter(visit: Callable[[ctypes.c_void_p, AdapterDesc1], None]) -> None:
    """Call ``visit`` with each IDXGIAdapter1, which is released afterwards, and its description.

    Raises:
        ProbeFailed: DXGI cannot be loaded or refuses.
    """
    if sys.platform != "win32":
        raise ProbeFailed("DXGI is part of Windows")
    try:
        library = ctypes.WinDLL("dxgi")
    except OSError as error:
        raise ProbeFailed(f"dxgi.dll: {error}") from None
    factory = ctypes.c_void_p()
    if library.CreateDXGIFactory1(ctypes.byref(IID_FACTORY1), ctypes.byref(factory)) < 0 or not factory.value:
        raise ProbeFailed("CreateDXGIFactory1 was refused")
    try:
        _enumerate(factory, visit)
    finally:
        release(factory)


def _enumerate(factory: ctypes.c_void_p, visit: Callable[[ctypes.c_void_p, AdapterDesc1], None]) -> None:
    enum_adapters = _method(factory, FACTORY1_ENUM_ADAPTERS1, ctypes.c_long, ctypes.c_uint, ctypes.c_void_p)
    for index in range(64):
        adapter = ctypes.c_void_p()
        result = enum_adapters(index, ctypes.byref(adapter))
        if result & 0xFFFFFFFF == ERROR_NOT_FOUND:
            break
        if result < 0:
            raise ProbeFailed(f"EnumAdapters1 failed with {result & 0xFFFFFFFF:#010x}")
        try:
            desc = AdapterDesc1()
            if _method(adapter, ADAPTER1_GET_DESC1, ctypes.c_long, ctypes.c_void_p)(ctypes.byref(desc)) >= 0:
                visit(adapter, desc)
        finally:
            release(adapter)


def release(instance: ctypes.c_void_p) -> None:
    """Give a COM object back."""
    _method(instance, RELEASE, ctypes.c_ulong)()


def _method(instance: ctypes.c_void_p, slot: int, result: Any, *arguments: Any) -> Any:
    """The function in ``slot`` of a COM object's vtable, bound to the object."""
    if sys.platform != "win32":
        raise ProbeFailed("COM is part of Windows")
    table = ctypes.cast(instance, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    function = ctypes.WINFUNCTYPE(result, ctypes.c_void_p, *arguments)(table[slot])
    return lambda *values: function(instance, *values)
