"""How a source fails: for itself, so that the next one is tried, or for the whole install."""

from __future__ import annotations

import errno

from coe_cli.errors import CoeError
from coe_cli.runtime.atomic_write import DISK_FULL

_OF_THIS_MACHINE = {*DISK_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class SourceFailed(CoeError):
    """One source did not give the model; the next one may."""


def is_local(error: BaseException) -> bool:
    """Whether ``error`` is this machine's (a full disk, a folder that cannot be written) and not the source's."""
    return isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE
