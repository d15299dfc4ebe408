"""What Windows refuses for a moment while somebody else has a file: a virus scanner, an indexer, another process of coe.

Files and folders are renamed and removed here and nowhere else in the package, and shared files are opened through
``runtime/regular_file``.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

WINDOWS = sys.platform == "win32"
_PATIENCE_S = 1.0
_LOOK_S = 0.02
_REMOVALS = 20
_IN_USE = {5, 32, 33, 145, 303}
"""ERROR_ACCESS_DENIED, _SHARING_VIOLATION, _LOCK_VIOLATION, _DIR_NOT_EMPTY (what was in it is still being removed), _DELETE_PENDING."""


def when_free(action: Callable[[], _T]) -> _T:
    """What ``action`` returns; it is tried again for a second while somebody holds the file.

    Raises:
        OSError: as ``action``, at once where waiting cannot help.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return action()
        except OSError as error:
            if not _may_pass(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def _may_pass(error: OSError) -> bool:
    reason = getattr(error, "winerror", None)  # opening a file tells Python no more than EACCES
    return reason in _IN_USE or (WINDOWS and reason is None and isinstance(error, PermissionError))


def move(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``; a file of that name is replaced.

    Raises:
        OSError: the system refuses, or a folder of that name is there.
    """
    when_free(lambda: source.replace(target))


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        OSError: the system refuses.
    """
    when_free(lambda: path.unlink(missing_ok=True))


def remove_folder(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and all that is in it, if it is there; with ``ignore_errors`` as much of it as goes.

    Raises:
        OSError: the system refuses.
    """

    def take_away() -> None:
        for _ in range(_REMOVALS):
            try:
                return shutil.rmtree(path)
            except FileNotFoundError:  # of the folder, or of what somebody else removes too
                if not path.exists():
                    return None
        return shutil.rmtree(path)

    try:
        when_free(take_away)
    except OSError:
        if not ignore_errors:
            raise
        shutil.rmtree(path, ignore_errors=True)


def empty_folder(path: Path) -> Path:
    """``path`` as a folder with nothing in it; whatever was there is removed.

    Raises:
        OSError: the system refuses.
    """
    remove_folder(path)
    when_free(lambda: path.mkdir(parents=True))
    return path
