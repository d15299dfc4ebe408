"""Ctrl-C in two steps: the first asks for an orderly end, the second is a KeyboardInterrupt as ever."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed."""

    happened = False


@contextlib.contextmanager
def two_step_interrupt(stop: Callable[[], None]) -> Iterator[Interrupt]:
    """While it lasts, the first SIGINT calls ``stop`` and later ones raise KeyboardInterrupt in the main thread."""
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if state.happened:
            raise KeyboardInterrupt
        state.happened = True
        with contextlib.suppress(RuntimeError):  # the stream was being written to: the message is lost, not the stop
            stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)
