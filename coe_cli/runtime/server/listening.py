"""The college's listening socket: its port for it alone, also where the college before it is only just letting go of it.

On Windows a port with SO_EXCLUSIVEADDRUSE is free when the last connection to it has ended, which may be after the process
("Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE", learn.microsoft.com). Elsewhere SO_REUSEADDR has connections in TIME_WAIT not count.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from coe_cli.errors import UsageError
from coe_cli.replacing import remove
from coe_cli.runtime.atomic_write import write_private
from coe_cli.runtime.server import discovery

_ENDED = "college.port"
"""Its time is when the college on that port ended."""
_JUST_NOW_S = 60.0
_PATIENCE_S = 5.0
_LOOK_S = 0.05
_IN_USE = {errno.EADDRINUSE, errno.EACCES if sys.platform == "win32" else errno.EADDRINUSE}


def note_ended(folder: Path, port: int) -> None:
    """Note that the college on ``port`` ends now."""
    with contextlib.suppress(OSError):  # a full disk: the next one may have to be started twice
        write_private(folder / _ENDED, b"%d" % port)


def just_ended(folder: Path) -> int | None:
    """The port of the college that ended just now, if one did; to be asked before its state file is removed."""
    killed = discovery.read_state(folder)
    if killed is not None:
        return killed.port
    with contextlib.suppress(OSError, ValueError):
        if abs(time.time() - (folder / _ENDED).stat().st_mtime) < _JUST_NOW_S:
            return int((folder / _ENDED).read_bytes())
        remove(folder / _ENDED)
    return None


@contextlib.contextmanager
def bound_socket(host: str, port: int, ended: int | None = None) -> Iterator[socket.socket]:
    """A socket that listens on ``port``; where that is the port that ``ended``, it is waited for up to ``_PATIENCE_S``.

    Raises:
        UsageError: the address is not this machine's, or the port is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{host} is not an address of this machine: {error.strerror}", "Use 127.0.0.1.") from None
    with listener:
        # Windows lets other programs share a port, or take it over, unless it is asked not to.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)
        attempts = round(_PATIENCE_S / _LOOK_S) if port and port == ended else 0
        while True:
            try:
                listener.bind(address)
                break
            except OSError as error:
                if error.errno not in _IN_USE or not attempts:
                    raise UsageError(
                        f"{host} port {port} cannot be used: {error.strerror}",
                        "Choose another --port; 0 takes a free one.",
                    ) from None
            attempts -= 1
            time.sleep(_LOOK_S)
        listener.listen(128)
        yield listener
