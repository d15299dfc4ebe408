"""Limits that a process sets itself before it runs what others wrote: how much memory, and no longer than its parent."""

from __future__ import annotations

import sys
from typing import Any

MEMORY_MB = 1536
"""Of 2²⁰ bytes. A tokenizer of 256,000 tokens takes 300, the ids of a long text a tenth of that."""


def bound_memory() -> None:
    """Let no allocation pass ``MEMORY_MB``: Python raises MemoryError there, other code ends the process."""
    if sys.platform == "win32":
        _bound_by_job(MEMORY_MB * 2**20)
        return
    import resource

    for name in ("RLIMIT_DATA", "RLIMIT_AS"):
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        size = (MEMORY_MB if name == "RLIMIT_DATA" else 4 * MEMORY_MB) * 2**20
        try:
            resource.setrlimit(limit, (size, size))
        except (ValueError, OSError):  # macOS takes neither; a lower limit of the user's stays
            continue


def _bound_by_job(size: int) -> None:
    """Windows: a job object of this process alone, which ends with it."""
    if sys.platform != "win32":
        return
    import ctypes
    from ctypes import wintypes

    class Basic(ctypes.Structure):
        _fields_ = [
            ("PerProcessUserTimeLimit", ctypes.c_int64),
            ("PerJobUserTimeLimit", ctypes.c_int64),
            ("LimitFlags", wintypes.DWORD),
            ("MinimumWorkingSetSize", ctypes.c_size_t),
            ("MaximumWorkingSetSize", ctypes.c_size_t),
            ("ActiveProcessLimit", wintypes.DWORD),
            ("Affinity", ctypes.c_size_t),
            ("PriorityClass", wintypes.DWORD),
            ("SchedulingClass", wintypes.DWORD),
        ]

    class Extended(ctypes.Structure):
        _fields_ = [
            ("BasicLimitInformation", Basic),
            ("IoInfo", ctypes.c_uint64 * 6),
            ("ProcessMemoryLimit", ctypes.c_size_t),
            ("JobMemoryLimit", ctypes.c_size_t),
            ("PeakProcessMemoryUsed", ctypes.c_size_t),
            ("PeakJobMemoryUsed", ctypes.c_size_t),
        ]

    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = wintypes.HANDLE
    kernel.CreateJobObjectW.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    kernel.SetInformationJobObject.argtypes = [wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
    job = kernel.CreateJobObjectW(None, None)
    limits = Extended()
    limits.BasicLimitInformation.LimitFlags = 0x100  # JOB_OBJECT_LIMIT_PROCESS_MEMORY
    limits.ProcessMemoryLimit = size
    if job and kernel.SetInformationJobObject(job, 9, ctypes.byref(limits), ctypes.sizeof(limits)):  # extended limits
        kernel.AssignProcessToJobObject(job, kernel.GetCurrentProcess())
