"""Windows: what all programs use of each adapter, from the "GPU Adapter Memory" performance counters."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from coe_cli.runtime.probes import ProbeFailed

DEDICATED: Final = r"\GPU Adapter Memory(*)\Dedicated Usage"
SHARED: Final = r"\GPU Adapter Memory(*)\Shared Usage"
FORMAT_LARGE: Final = 0x00000400
MORE_DATA: Final = 0x800007D2
VALID: Final = (0x00000000, 0x00000001)
"""PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA."""

_INSTANCE: Final = re.compile(r"^luid_0x(?P<high>[0-9a-f]{8})_0x(?P<low>[0-9a-f]{8})_phys_\d+", re.IGNORECASE)


class CounterValue(ctypes.Structure):
    """PDH_FMT_COUNTERVALUE; of the union only the 64-bit integer is asked for."""

    _fields_ = (("status", ctypes.c_uint32), ("large_value", ctypes.c_int64))


class CounterItem(ctypes.Structure):
    """PDH_FMT_COUNTERVALUE_ITEM_W."""

    _fields_ = (("name", ctypes.c_wchar_p), ("value", CounterValue))


class AdapterUsage(Struct, frozen=True):
    dedicated_bytes: int | None = None
    shared_bytes: int | None = None


def luid_of(instance: str) -> int | None:
    """The LUID in an instance name like ``luid_0x00000000_0x0000D1F2_phys_0``, or None."""
    match = _INSTANCE.match(instance)
    return int(match["high"], 16) << 32 | int(match["low"], 16) if match else None


def usage_from(dedicated: Iterable[tuple[str, int]], shared: Iterable[tuple[str, int]]) -> dict[int, AdapterUsage]:
    """Usage by LUID from the two counters' (instance, bytes) pairs; the parts of a linked adapter add up."""
    sums: dict[int, dict[str, int]] = {}
    for kind, pairs in (("dedicated_bytes", dedicated), ("shared_bytes", shared)):
        for instance, size in pairs:
            luid = luid_of(instance)
            if luid is not None and size >= 0:
                entry = sums.setdefault(luid, {})
                entry[kind] = entry.get(kind, 0) + size
    return {luid: AdapterUsage(**entry) for luid, entry in sums.items()}


def read_usage() -> dict[int, AdapterUsage]:
    """Usage of every adapter by LUID.

    Raises:
        ProbeFailed: the counters are missing (Windows before 10 1709, or disabled) or cannot be read.
    """
    if sys.platform != "win32":
        raise ProbeFailed("performance counters are part of Windows")
    library = ctypes.WinDLL("pdh")
    query = ctypes.c_void_p()
    _check(library.PdhOpenQueryW(None, ctypes.c_size_t(0), ctypes.byref(query)), "PdhOpenQueryW")
    try:
        counters = []
        for path in (DEDICATED, SHARED):
            counter = ctypes.c_void_p()
            status = library.PdhAddEnglishCounterW(query, path, ctypes.c_size_t(0), ctypes.byref(counter))
            _check(status, "PdhAddEnglishCounterW")
            counters.append(counter)
        _check(library.PdhCollectQueryData(query), "PdhCollectQueryData")
        dedicated, shared = (_values(library, counter) for counter in counters)
        return usage_from(dedicated, shared)
    finally:
        library.PdhCloseQuery(query)


def _values(library: Any, counter: ctypes.c_void_p) -> list[tuple[str, int]]:
    size, count = ctypes.c_uint32(0), ctypes.c_uint32(0)
    get = library.PdhGetFormattedCounterArrayW
    status = get(counter, FORMAT_LARGE, ctypes.byref(size), ctypes.byref(count), None) & 0xFFFFFFFF
    if status not in (0, MORE_DATA):
        _check(status, "PdhGetFormattedCounterArrayW")
    if not size.value:
        return []
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(counter, FORMAT_LARGE, ctypes.byref(size), ctypes.byref(count), buffer), "PdhGetFormattedCounterArrayW")
    items = ctypes.cast(buffer, ctypes.POINTER(CounterItem))
    return [
        (items[index].name or "", int(items[index].value.large_value))
        for index in range(count.value)
        if items[index].value.status in VALID
    ]


def _check(status: int, call: str) -> None:
    if status & 0xFFFFFFFF:
        raise ProbeFailed(f"{call} failed with {status & 0xFFFFFFFF:#010x}")
