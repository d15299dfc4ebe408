"""How long work reports where it is: a stage, how far, and of how much."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

_LOOK_EVERY_S = 0.2


class Step(NamedTuple):
    """``done`` and ``total`` are bytes when ``is_bytes``, else parts of 1.0; a total of None is not known."""

    stage: str
    done: float
    total: float | None
    is_bytes: bool = False


OnProgress = Callable[[Step], None]


def ignore(step: Step) -> None:
    """Report to nobody."""


class FolderGrowth:
    """Report a download by the growth of the folder it goes to, whatever program writes there."""

    def __init__(self, stage: str, folder: Path, total_bytes: float | None, on_progress: OnProgress) -> None:
        self._stage, self._folder, self._total = stage, folder, total_bytes
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen_bytes = 0

    def __enter__(self) -> Self:
        self._on_progress(Step(self._stage, 0, self._total, is_bytes=True))
        self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._on_progress(Step(self._stage, self._total or self.seen_bytes, self._total, is_bytes=True))

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self.seen_bytes = max(self.seen_bytes, size_of(self._folder))
            done = min(self.seen_bytes, self._total) if self._total else self.seen_bytes
            self._on_progress(Step(self._stage, done, self._total, is_bytes=True))


def size_of(folder: Path) -> int:
    """Bytes of all files below ``folder``, while others may write there; what a link leads to is not counted."""
    size = 0
    for parent, _, names in os.walk(folder):  # which, unlike Path.rglob, bears folders that vanish meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                info = (Path(parent) / name).lstat()
                size += info.st_size if stat.S_ISREG(info.st_mode) else 0
    return size
