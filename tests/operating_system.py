"""What tests do to processes and files otherwise on Windows than elsewhere: each helper here does it on both, or says why not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

WINDOWS = sys.platform == "win32"
SYSTEM_ENDED_IT = "was ended from outside" if WINDOWS else "was killed by signal 9"
"""What coe says of a worker that another process has killed."""
_DETACHED_PROCESS, _CREATE_NO_WINDOW = 0x8, 0x8000000

OF_ITS_OWN: dict[str, Any] = {"creationflags": _CREATE_NO_WINDOW} if WINDOWS else {"start_new_session": True}
"""Options of Popen for a process with a terminal of its own: what is typed there reaches nobody else."""


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C in the terminal of a process that was started with ``OF_ITS_OWN``: for it and for what it has started."""
    if not WINDOWS:
        os.killpg(process.pid, signal.SIGINT)
        return
    press = (
        "import ctypes, sys; kernel = ctypes.WinDLL('kernel32'); kernel.FreeConsole();"
        "attached = kernel.AttachConsole(int(sys.argv[1])); kernel.SetConsoleCtrlHandler(None, True);"
        "sys.exit(not (attached and kernel.GenerateConsoleCtrlEvent(0, 0)))"
    )
    command = [sys.executable, "-c", press, str(process.pid)]
    subprocess.run(command, check=True, creationflags=_DETACHED_PROCESS, timeout=60)


def kill(pid: int) -> None:
    """Kill a process at once.

    Raises:
        ProcessLookupError: there is none.
    """
    try:
        psutil.Process(pid).kill()
    except (psutil.Error, OSError):  # Windows refuses what is ending already
        raise ProcessLookupError(pid) from None


def end_tree(pid: int) -> None:
    """Kill a process that was started with ``OF_ITS_OWN``, and what it has started."""
    if not WINDOWS:
        os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid)
        for process in [started, *started.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()


def make_link(path: Path, target: Path | str) -> None:
    """Make ``path`` a symbolic link; the test is skipped where the system makes none.

    Windows wants a privilege or its developer mode. Wine 10 says that it has made one, and has not.
    """
    try:
        path.symlink_to(target, target_is_directory=(path.parent / target).is_dir())
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")
    if not path.is_symlink():
        pytest.skip("links cannot be made here, though the system says that it made one")


def make_fifo(path: Path) -> None:
    """Make a FIFO; the test is skipped where files cannot be one."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no FIFOs among files")
    os.mkfifo(path)
