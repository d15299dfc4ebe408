"""Ctrl-C at a bad moment: in two steps where an orderly end takes a while, put off where it would leave something behind."""

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


@contextlib.contextmanager
def interrupt_put_off() -> Iterator[None]:
    """While it lasts, SIGINT does nothing; one that came takes effect at the end."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
