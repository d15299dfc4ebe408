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


class _Stops:
    """Ctrl-Z for all who hold the terminal: of each pair one is called before the process stops, and one when it goes on."""

    def __init__(self) -> None:
        self._held: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._before: list[tuple[int, Handler]] = []
        self._is_away = False

    def add(self, pair: tuple[Callable[[], None], Callable[[], None]]) -> None:
        self._held.append(pair)
        if len(self._held) == 1:
            ours = ((signal.SIGCONT, self.go_on), (signal.SIGTSTP, self.stop))
            self._before = [(number, signal.signal(number, handler)) for number, handler in ours]

    def remove(self, pair: tuple[Callable[[], None], Callable[[], None]]) -> None:
        self._held.remove(pair)
        if not self._held:
            for number, handler in reversed(self._before):
                signal.signal(number, handler)

    def stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_away:  # pressed twice
            return
        self._is_away = True
        for give_back, _ in reversed(self._held):
            give_back()
        mine = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # it stops here, unless no shell could have it go on
        signal.signal(number, mine)
        self._is_away = False
        self.go_on(number, frame)

    def go_on(self, number: int, frame: FrameType | None) -> None:
        if self._is_away:  # what stopped goes on by itself
            return
        with stop_put_off():  # who sees the view again may press Ctrl-Z before it is whole
            for _, take in self._held:
                take()


_stops = _Stops()


@contextlib.contextmanager
def around_stop(give_back: Callable[[], None], take: Callable[[], None]) -> Iterator[None]:
    """While it lasts, Ctrl-Z calls ``give_back`` before the process stops, and ``take`` when it goes on, also after a SIGSTOP.

    Nested, the inner one gives back first. ``take`` may be called twice. Main thread only; elsewhere, on Windows and where
    Ctrl-Z is ignored or somebody else's, nothing is called.
    """
    if sys.platform == "win32" or _of_stop() not in (signal.SIG_DFL, _stops.stop):
        yield
        return
    pair = (give_back, take)
    _stops.add(pair)
    try:
        yield
    finally:
        _stops.remove(pair)


@contextlib.contextmanager
def stop_put_off() -> Iterator[None]:
    """While it lasts, Ctrl-Z and going on do nothing where ``around_stop`` would; what came takes effect at the end."""
    if sys.platform == "win32" or not callable(_of_stop()):
        yield
        return
    came: list[int] = []
    before = [
        (number, signal.signal(number, lambda number, frame: came.append(number)))
        for number in (signal.SIGCONT, signal.SIGTSTP)
    ]
    try:
        yield
    finally:
        for number, handler in reversed(before):
            signal.signal(number, handler)
        for number, handler in before:
            if number in came and callable(handler):
                handler(number, None)


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
