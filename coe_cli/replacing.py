"""Renames and removals that Windows refuses while a program reads the file, as virus scanners and indexers do for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

_PATIENCE_S = 1.0
_LOOK_S = 0.02
_IN_USE = {5, 32, 33}
"""ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION."""


def when_free(action: Callable[[], _T]) -> _T:
    """What ``action`` returns; it is tried again for a second while somebody holds the file.

    Raises:
        OSError: as ``action``, at once where waiting cannot help.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return action()
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


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
