"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from coe_cli.errors import DISK_FULL
from coe_cli.replacing import move, remove


def is_full(error: BaseException) -> bool:
    """Whether there is no room for what is to be written."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def make_private(path: Path) -> Path:
    """``path`` as a file that only its owner can read, made if need be, in a folder that is so too; whatever the umask.

    Raises:
        OSError: it cannot be made.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.chmod(0o700)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write beside ``path`` (with its suffix), which takes the place of ``path`` when the block ends.

    When it does not end, ``path`` is as it was. Hard links to what was there before keep that.
    """
    scratch = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        with named_when_full(path):
            yield scratch
        move(scratch, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(scratch)
        if isinstance(error, OSError) and error.filename == str(scratch):
            error.filename = str(path)  # the name that the user knows
        raise


@contextlib.contextmanager
def written_out(path: Path) -> Iterator[Path]:
    """The same for a file that the user has named: a link stays one, and a device or a pipe is written as it is."""
    if path.is_file() or not path.exists():
        with atomic_write(path.resolve() if path.is_symlink() else path) as scratch:
            yield scratch
    else:
        with named_when_full(path):
            yield path


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[Path]:
    """``path`` itself; a full disk's error in the block says that it is being written, for the system says no name."""
    try:
        yield path
    except OSError as error:
        if error.filename is None and is_full(error):
            error.filename = str(path)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Put a file in place at once, readable by its owner alone.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    with atomic_write(path) as scratch:
        make_private(scratch).write_bytes(data)
