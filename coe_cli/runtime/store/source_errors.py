"""How a source fails: for itself, so that the next one is tried, or for the whole install."""

from __future__ import annotations

import errno
import time

from coe_cli.errors import DISK_FULL, CoeError

_OF_THIS_MACHINE = {*DISK_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


ANSWER_S = 15.0
"""For a hub or an index to say what it has, over a slow line and from a busy server too."""
_LATELY_S = 60.0
_silent_since: dict[str, float] = {}


class SourceFailed(CoeError):
    """One source did not give the model; the next one may."""


class NoAnswer(SourceFailed):
    """A server said nothing. It is not waited for again for a minute: one question may want several things of it."""

    def __init__(self, server: str, after_s: float) -> None:
        super().__init__(f"did not answer within {after_s:g} s")
        _silent_since.setdefault(server, time.monotonic())

    @staticmethod
    def check(server: str, after_s: float) -> None:
        """
        Raises:
            NoAnswer: ``server`` said nothing lately.
        """
        if time.monotonic() - _silent_since.get(server, -_LATELY_S) < _LATELY_S:
            raise NoAnswer(server, after_s)
        _silent_since.pop(server, None)


def is_local(error: BaseException) -> bool:
    """Whether ``error`` is this machine's (a full disk, a folder that cannot be written) and not the source's."""
    return isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE
