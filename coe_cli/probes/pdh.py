"""Windows: what all programs use of each adapter, from the "GPU Adapter Memory" performance counters."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import ProbeFailed

DEDICATED: Final = r"\GPU Adapter Memory(*)\Dedicated Usage"
SHARED: Final = r"\GPU Adapter Memory(*)\Shared Usage"
PROCESS_DEDICATED: Final = r"\GPU Process Memory(*)\Dedicated Usage"
PROCESS_SHARED: Final = r"\GPU Process Memory(*)\Shared Usage"
FORMAT_LARGE: Final = 0x00000400
MORE_DATA: Final = 0x800007D2
VALID: Final = (0x00000000, 0x00000001)
"""PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA."""

_INSTANCE: Final = re.compile(r"^luid_0x(?P<high>[0-9a-f]{8})_0x(?P<low>[0-9a-f]{8})_phys_\d+", re.IGNORECASE)

_PROCESS: Final = re.compile(r"^pid_(?P<pid>\d+)_(?P<rest>luid_.*)", re.IGNORECASE)


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


def process_usage_from(pairs: Iterable[tuple[str, int]], luid: int) -> dict[int, float]:
    """MB of the adapter ``luid`` by process id, from instances like ``pid_12_luid_0x00000000_0x0000D1F2_phys_0``."""
    found: dict[int, float] = {}
    for instance, size in pairs:
        match = _PROCESS.match(instance)
        if match and size >= 0 and luid_of(match["rest"]) == luid:
            pid = int(match["pid"])
            found[pid] = found.get(pid, 0.0) + size / BYTES_PER_MB
    return found


def read_usage() -> dict[int, AdapterUsage]:
    """Usage of every adapter by LUID.

    Raises:
        ProbeFailed: the counters are missing (Windows before 10 1709, or disabled) or cannot be read.
    """
    dedicated, shared = _read(DEDICATED, SHARED)
    return usage_from(dedicated, shared)


def read_process_usage(luid: int, *, shared: bool) -> dict[int, float]:
    """MB of one adapter by process id, ``shared`` memory counted in or not.

    Raises:
        ProbeFailed: as ``read_usage``.
    """
    paths = (PROCESS_DEDICATED, PROCESS_SHARED) if shared else (PROCESS_DEDICATED,)
    return process_usage_from([pair for pairs in _read(*paths) for pair in pairs], luid)


def _read(*paths: str) -> list[list[tuple[str, int]]]:
    """(instance, value) pairs of each counter path.

    Raises:
        ProbeFailed: this is not Windows, or a counter is missing or cannot be read.
    """
    if sys.platform != "win32":
        raise ProbeFailed("performance counters are part of Windows")
    library = ctypes.WinDLL("pdh")
    query = ctypes.c_void_p()
    _check(library.PdhOpenQueryW(None, ctypes.c_size_t(0), ctypes.byref(query)), "PdhOpenQueryW")
    try:
        counters = []
        for path in paths:
            counter = ctypes.c_void_p()
            status = library.PdhAddEnglishCounterW(query, path, ctypes.c_size_t(0), ctypes.byref(counter))
            _check(status, "PdhAddEnglishCounterW")
            counters.append(counter)
        _check(library.PdhCollectQueryData(query), "PdhCollectQueryData")
        return [_values(library, counter) for counter in counters]
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
