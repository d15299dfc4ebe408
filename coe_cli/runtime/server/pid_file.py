"""Which process a college is, in a file beside its lock: so that `coe stop` ends that process and never another one.

A process id is used again once its process has ended; together with the instant of its start it names one process for good.
The lock file itself cannot say it: opening a lock truncates it, and on Windows a locked file cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from coe_cli.runtime.atomic_write import write_private
from coe_cli.runtime.regular_file import read_regular

COLLEGE = "college.pid"
"""The holder of ``college.lock``."""
STARTING = "start.pid"
"""The process that was started last to become the college; it may not have come as far as its lock."""

_MAX_BYTES = 4096
_LOOK_S = 0.02


class ProcessIdentity(Struct, frozen=True):
    """``started``: the instant of the start, in whatever the system counts it exactly."""

    pid: int
    started: str

    @property
    def runs(self) -> bool:
        return identity_of(self.pid) == self

    def end(self, allowed_s: float) -> bool:
        """Ask it to end, and kill it when it has not within ``allowed_s``; whether it is gone."""
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            for each in (number, getattr(signal, "SIGCONT", None)):  # one that was stopped hears nothing else
                if each is not None and self.runs:
                    with contextlib.suppress(OSError):
                        os.kill(self.pid, each)
            deadline = time.monotonic() + allowed_s
            while self.runs and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
        return not self.runs


def identity_of(pid: int) -> ProcessIdentity | None:
    """The process that has this id now; None where there is none, or only what is left of one that has ended."""
    if sys.platform == "linux":
        try:  # ticks since the system's start: not moved when the clock is set, as times derived from it are
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else ProcessIdentity(pid, fields[19].decode())
    import psutil

    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else ProcessIdentity(pid, f"{process.create_time():.3f}")
    except (psutil.Error, OSError):
        return None


def write(path: Path, pid: int) -> None:
    """Name the process ``pid`` in ``path``.

    Raises:
        OSError: the file cannot be written.
    """
    identity = identity_of(pid)
    if identity is not None:
        write_private(path, msgspec.json.encode(identity))


def read(path: Path) -> ProcessIdentity | None:
    """The process that ``path`` names, if it still runs."""
    try:
        identity = msgspec.json.decode(read_regular(path, _MAX_BYTES), type=ProcessIdentity)
    except (OSError, msgspec.MsgspecError):
        return None
    return identity if identity.pid > 0 and identity.runs else None
