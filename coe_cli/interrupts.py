"""Ctrl-C at a bad moment: in two steps where an orderly end takes a while, put off where it would leave something behind.

On Windows Ctrl-Break, and a console that is closed, is SIGBREAK and means the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGBREAK") if hasattr(signal, name))
"""What Ctrl-C and its like send."""


def on_interrupt(handler: Handler) -> Handler:
    """Have ``handler`` called for each of ``SIGNALS``; returns the one of Ctrl-C before. Main thread only."""
    before = signal.getsignal(signal.SIGINT)
    for number in SIGNALS:
        signal.signal(number, handler)
    return before


class Interrupt:
    """Whether Ctrl-C was pressed."""

    happened = False


@contextlib.contextmanager
def two_step_interrupt(stop: Callable[[], None]) -> Iterator[Interrupt]:
    """While it lasts, the first Ctrl-C calls ``stop`` and later ones raise KeyboardInterrupt in the main thread."""
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

    before = on_interrupt(handle)
    try:
        yield state
    finally:
        on_interrupt(before)


@contextlib.contextmanager
def interrupt_put_off() -> Iterator[None]:
    """While it lasts, Ctrl-C does nothing; one that came takes effect at the end."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    on_interrupt(lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        on_interrupt(before)
        if came:
            before(*came[0])


@contextlib.contextmanager
def around_stop(give_back: Callable[[], None], take: Callable[[], None]) -> Iterator[None]:
    """While it lasts, Ctrl-Z calls ``give_back`` before the process stops, and ``take`` when it goes on, also after a SIGSTOP.

    Nested, the inner one gives back first. ``take`` may be called twice. Main thread only; elsewhere, on Windows and where
    Ctrl-Z is ignored, nothing is called.
    """
    before = _of_stop()
    if sys.platform == "win32" or before in (None, signal.SIG_IGN):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        give_back()
        if callable(before):
            before(number, frame)
        else:
            mine = signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # it stops here, unless no shell could have it go on
            signal.signal(number, mine)
        take()

    def go_on(number: int, frame: FrameType | None) -> None:
        if callable(before_cont):
            before_cont(number, frame)
        take()

    before_cont = signal.signal(signal.SIGCONT, go_on)
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        signal.signal(signal.SIGCONT, before_cont)


@contextlib.contextmanager
def stop_put_off() -> Iterator[None]:
    """While it lasts, Ctrl-Z does nothing where ``around_stop`` would; one that came takes effect at the end."""
    before = _of_stop()
    if sys.platform == "win32" or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    cont = signal.signal(signal.SIGCONT, lambda number, frame: None)
    signal.signal(signal.SIGTSTP, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        signal.signal(signal.SIGCONT, cont)
        if came:
            before(*came[0])


def _of_stop() -> Handler:
    """What Ctrl-Z does; None where there is no such signal, or it is not this thread's to say."""
    is_main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTSTP) if sys.platform != "win32" and is_main else None


@contextlib.contextmanager
def children_without_interrupt() -> Iterator[None]:
    """What is started while it lasts is not ended by Ctrl-C before it can ignore it itself.

    Elsewhere a process inherits that Ctrl-C is put off. On Windows it inherits that Ctrl-C is ignored; one that is pressed
    in these milliseconds is lost.
    """
    if sys.platform != "win32":
        with interrupt_put_off():
            yield
        return
    import ctypes

    set_handler = ctypes.WinDLL("kernel32").SetConsoleCtrlHandler
    set_handler(None, True)
    try:
        yield
    finally:
        set_handler(None, False)
