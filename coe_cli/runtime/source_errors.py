"""How a source fails: for itself, so that the next one is tried, or for the whole install."""

from __future__ import annotations

import errno

from coe_cli.errors import CoeError, DoesNotFit

_OF_THIS_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class SourceFailed(CoeError):
    """One source did not give the model; the next one may."""


class DiskFull(DoesNotFit):
    """The disk has no room for the model."""

    code = "disk_full"


def is_local(error: BaseException) -> bool:
    """Whether ``error`` is this machine's (a full disk, a folder that cannot be written) and not the source's."""
    return isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
