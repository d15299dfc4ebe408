"""How a process ended, from its exit code: POSIX has signals for what Windows says in an NTSTATUS number."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_NAMES = {
    0x40010004: "ended by a debugger",
    0x80000003: "breakpoint",
    0xC0000005: "access violation",
    0xC0000006: "a file could not be read into memory",
    0xC0000017: "no memory",
    0xC000001D: "illegal instruction",
    0xC000007B: "a DLL is for another processor",
    0xC0000094: "division by zero",
    0xC000009A: "insufficient system resources",
    0xC00000FD: "stack overflow",
    0xC000012D: "the page file is full",
    0xC0000135: "a DLL is missing",
    0xC0000139: "a DLL lacks a function",
    0xC000013A: "Ctrl-C",
    0xC0000142: "a DLL could not start",
    0xC0000374: "heap corruption",
    0xC0000409: "aborted",
    0xC0000417: "invalid argument to the C runtime",
    0xC0000420: "assertion failed",
    0xC0000602: "fail fast",
    0xC06D007E: "a DLL is missing",
    0xC06D007F: "a DLL lacks a function",
    0xE06D7363: "C++ exception",
}
"""NTSTATUS and exception codes (ntstatus.h; 0xC06D…: delay-loaded DLLs; 0xE06D7363: Microsoft's C++)."""

_NO_MEMORY = {0xC0000017, 0xC000009A, 0xC000012D}
_FROM_OUTSIDE = {1, 9, 15, 0x40010004, 0xC000013A}
"""Task Manager and `taskkill` end a process with code 1, programs in Python with a signal's number."""

_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    15: "SIGTERM",
}
_OUTSIDE_SIGNALS = {1, 2, 9, 15}
"""Signals that a process does not give itself when it crashes."""


class ExitKind(Enum):
    """Why a process ended. ``KILLED``: from outside, by hand or by a system that ran out of memory."""

    EXITED = "exited"
    KILLED = "killed"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"


@dataclass(frozen=True)
class ProcessExit:
    """``text`` follows the name of the process: "was killed by signal 9 (SIGKILL)"."""

    kind: ExitKind
    text: str


def explain_exit(code: int, *, windows: bool, silent: bool = True) -> ProcessExit:
    """What ``code`` says, as Python's subprocess gives it. ``silent``: the process had no last words.

    Windows tells an exit code and a kill apart by its number alone: 1 is also what Python ends with after a traceback.
    """
    if windows:
        return _of_windows(code & 0xFFFFFFFF, silent)
    if code < 0:
        kind = ExitKind.KILLED if -code in _OUTSIDE_SIGNALS else ExitKind.CRASHED
        name = f" ({_SIGNALS[-code]})" if -code in _SIGNALS else ""
        return ProcessExit(kind, f"was killed by signal {-code}{name}")
    if code == 128 + 9:  # as a shell, or a container, passes it on
        return explain_exit(-9, windows=False)
    return ProcessExit(ExitKind.EXITED, f"ended with code {code}")


def _of_windows(code: int, silent: bool) -> ProcessExit:
    shown = f"{code:#010X}".replace("0X", "0x") if code > 0xFFFF else str(code)
    if code in _NO_MEMORY:
        return ProcessExit(ExitKind.OUT_OF_MEMORY, f"ran out of memory ({shown}: {_NAMES[code]})")
    if code in _FROM_OUTSIDE and (silent or code in _NAMES):
        more = f": {_NAMES[code]}" if code in _NAMES else ""
        return ProcessExit(ExitKind.KILLED, f"was ended from outside (code {shown}{more})")
    if code >= 0x40000000:
        return ProcessExit(ExitKind.CRASHED, f"crashed ({shown}{f': {_NAMES[code]}' if code in _NAMES else ''})")
    return ProcessExit(ExitKind.EXITED, f"ended with code {shown}")
