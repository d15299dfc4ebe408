"""A limit on time for a thread that waits for what another process writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_S = 0.2


class Deadline:
    """Calls ``then`` in a thread once the ``seconds`` of the last ``begin`` have passed, unless the block was left before."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self._then = then
        self._left = threading.Event()
        self.begin(seconds)
        self.passed = False

    def __enter__(self) -> Deadline:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()

    def begin(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def _watch(self) -> None:
        # In short waits: the next stage may have to end before the one that is waited for.
        while not self._left.wait(max(0.0, min(_LOOK_S, self._at - time.monotonic()))):
            if time.monotonic() >= self._at:
                self.passed = True
                self._then()
                return
