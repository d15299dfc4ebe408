"""Windows: a job that ends the workers in it when this process ends, however it ends, and one that bounds a process's memory.

A worker notices by itself that its parent is gone, but not in the middle of a prefill, which lasts as long as its prompt.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import threading
from typing import Any, Final

OWN_GROUP: Final[dict[str, Any]] = (
    {"creationflags": 0x00000200} if sys.platform == "win32" else {"start_new_session": True}
)
"""A group of its own for a child (on Windows CREATE_NEW_PROCESS_GROUP): Ctrl-C reaches coe alone, and what the child starts ends with it."""

_KILL_ON_JOB_CLOSE, _PROCESS_MEMORY = 0x2000, 0x0100
_EXTENDED_LIMIT_INFORMATION = 9
_SIZE = 144  # of JOBOBJECT_EXTENDED_LIMIT_INFORMATION in a process of 64 bits
_FLAGS_AT, _PROCESS_MEMORY_AT = 16, 112  # its LimitFlags and its ProcessMemoryLimit
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
            _job = _make(kernel32, _KILL_ON_JOB_CLOSE)  # closed with this process, which ends all that is in it
    process = kernel32.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, pid)
    if not process:
        return False
    try:
        return bool(kernel32.AssignProcessToJobObject(_job, process))
    finally:
        kernel32.CloseHandle(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a child; Windows refuses that for one that is ending by itself at this moment."""
    with contextlib.suppress(OSError):
        process.kill()


def bound_by_job(size: int) -> None:
    """Let no allocation of this process pass ``size`` bytes, by a job of its own, which ends with it."""
    kernel32 = _kernel32()
    kernel32.AssignProcessToJobObject(_make(kernel32, _PROCESS_MEMORY, size), kernel32.GetCurrentProcess())


def _make(kernel32: Any, flags: int, process_memory: int = 0) -> Any:
    job = kernel32.CreateJobObjectW(None, None)
    limits = bytearray(_SIZE)
    struct.pack_into("<I", limits, _FLAGS_AT, flags)
    struct.pack_into("<Q", limits, _PROCESS_MEMORY_AT, process_memory)
    kernel32.SetInformationJobObject(job, _EXTENDED_LIMIT_INFORMATION, bytes(limits), _SIZE)
    return job


def _kernel32() -> Any:
    import ctypes

    library = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    handle, number = ctypes.c_void_p, ctypes.c_uint32
    library.CreateJobObjectW.restype = library.OpenProcess.restype = library.GetCurrentProcess.restype = handle
    library.CreateJobObjectW.argtypes = [handle, ctypes.c_wchar_p]
    library.SetInformationJobObject.argtypes = [handle, ctypes.c_int, ctypes.c_char_p, number]
    library.OpenProcess.argtypes = [number, ctypes.c_int, number]
    library.AssignProcessToJobObject.argtypes = [handle, handle]
    library.CloseHandle.argtypes = [handle]
    return library
