"""Windows: a job that ends the workers in it when this process ends, however it ends.

A worker notices by itself that its parent is gone, but not in the middle of a prefill, which lasts as long as its prompt.
"""

from __future__ import annotations

import struct
import sys
import threading
from typing import Any

_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMIT_INFORMATION = 9
_SIZE, _FLAGS_AT = 144, 16  # of JOBOBJECT_EXTENDED_LIMIT_INFORMATION in a process of 64 bits, and its LimitFlags
_SET_QUOTA_AND_TERMINATE = 0x0100 | 0x0001

_lock = threading.Lock()
_job: Any = None


def end_with_us(pid: int) -> bool:
    """Put a process into the job; whether that could be done. Elsewhere than on Windows it does nothing."""
    if sys.platform != "win32":
        return False
    global _job
    kernel32 = _kernel32()
    with _lock:
        if _job is None:
            _job = _make(kernel32)  # closed with this process, which ends all that is in it
    process = kernel32.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, pid)
    if not process:
        return False
    try:
        return bool(kernel32.AssignProcessToJobObject(_job, process))
    finally:
        kernel32.CloseHandle(process)


def _make(kernel32: Any) -> Any:
    job = kernel32.CreateJobObjectW(None, None)
    limits = bytearray(_SIZE)
    struct.pack_into("<I", limits, _FLAGS_AT, _KILL_ON_JOB_CLOSE)
    kernel32.SetInformationJobObject(job, _EXTENDED_LIMIT_INFORMATION, bytes(limits), _SIZE)
    return job


def _kernel32() -> Any:
    import ctypes

    library = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    handle, number = ctypes.c_void_p, ctypes.c_uint32
    library.CreateJobObjectW.restype = library.OpenProcess.restype = handle
    library.CreateJobObjectW.argtypes = [handle, ctypes.c_wchar_p]
    library.SetInformationJobObject.argtypes = [handle, ctypes.c_int, ctypes.c_char_p, number]
    library.OpenProcess.argtypes = [number, ctypes.c_int, number]
    library.AssignProcessToJobObject.argtypes = [handle, handle]
    library.CloseHandle.argtypes = [handle]
    return library
