"""What stdin and stdout of a child process were, kept for messages to its parent alone."""

from __future__ import annotations

import os
import signal
import sys
from typing import BinaryIO


def take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Duplicates of stdin and stdout; from here on stdin is empty and what anybody prints goes to stderr.

    Libraries and native code look at file descriptor 0 and print to 1. On Windows all I/O on one file object waits its
    turn: with a thread that reads the parent's pipe through descriptor 0, a library that asks what stdin is would wait
    for ever.
    """
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return inbox, outbox


def die_with_parent() -> None:
    """Linux: ask for SIGKILL when the parent ends, since what holds the GIL, as a prefill does, would not see the channel close."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)
