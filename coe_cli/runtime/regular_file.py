"""Opens files that a user or a model names: regular files only, no more of them than is sensible, and never waiting.

A FIFO would be waited for without end, and a device such as ``/dev/zero`` has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from coe_cli.replacing import when_free

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading; the caller closes it. Links are followed.

    Raises:
        OSError: it cannot be opened, is a folder, FIFO, socket or device, or has more than ``max_bytes`` bytes.
    """
    return when_free(lambda: _open(path, max_bytes))


def _open(path: Path, max_bytes: int | None) -> BinaryIO:
    _check(path, path.stat(), max_bytes)  # before it is opened, which on some devices is an action
    descriptor = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, max_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError: as ``open_regular``; also where it grows beyond ``max_bytes`` while it is read.
    """
    with open_regular(path, max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _refused(path, f"has more than {max_bytes} bytes")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """All of a regular UTF-8 file, without a byte order mark.

    Raises:
        OSError: as ``read_regular``.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_regular(path, max_bytes).decode("utf-8-sig")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is in ``folder`` after links are resolved; a link that leads to itself stays where it is."""
    root = os.path.realpath(folder)  # Path.resolve() raises for such a link
    return Path(os.path.realpath(path)).is_relative_to(root)


def _check(path: Path, info: os.stat_result, max_bytes: int | None) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(info.st_mode):
        raise _refused(path, "is not a regular file")
    if max_bytes is not None and info.st_size > max_bytes:
        raise _refused(path, f"has more than {max_bytes} bytes")


def _refused(path: Path, problem: str) -> OSError:
    return OSError(errno.EINVAL, problem, str(path))
