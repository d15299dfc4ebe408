"""How a source fails: for itself, so that the next one is tried, or for the whole install."""

from __future__ import annotations

import errno

from coe_cli.errors import CoeError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_THIS_MACHINE = {*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class SourceFailed(CoeError):
    """One source did not give the model; the next one may."""


def is_local(error: BaseException) -> bool:
    """Whether ``error`` is this machine's (a full disk, a folder that cannot be written) and not the source's."""
    return isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE


def is_full(error: BaseException) -> bool:
    """Whether the disk, a quota, or the file system's largest file is reached (FAT32: 4 GB)."""
    return isinstance(error, OSError) and error.errno in _FULL
