"""What reaches a terminal: text without the characters that drive it, whoever wrote them.

Names of models and files, answers, errors of servers and a GGUF's metadata come from others. On a terminal they are text, so
control characters (C0 but line end and tab, DEL, C1) and those that turn the order of letters around are left out. In a pipe or
a file nothing is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TextIO

from coe_cli.interrupts import around_stop

_DRIVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def for_terminal(text: str) -> str:
    """``text`` without the characters that a terminal would act on."""
    return _DRIVING.sub("", text)


def wrapped(text: str, stream: IO[str]) -> str:
    """``text`` with its words kept whole on a terminal; in a pipe as it is. A word longer than a line is the terminal's to break."""
    if not stream.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns - 1)
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join("\n".join(parts) for parts in lines)


def draws_on(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal whose lines can be drawn anew; one that only writes on (TERM=dumb) is told in lines, as a pipe is."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def typing_held_back(
    stream: IO[str], hide: Callable[[], None] = lambda: None, show: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """What is typed in the block waits for who reads next: the terminal of ``stream`` does not write it into what is drawn.

    While the process is stopped (Ctrl-Z), and while it goes on in the background, the terminal is as it was found: ``hide`` takes
    what is drawn away, ``show`` draws it anew.
    """
    changed = False

    def take() -> None:
        nonlocal changed
        if _is_in_front(stream):
            changed = _echo(stream, on=False) or changed
            show()

    def give_back() -> None:
        nonlocal changed
        hide()
        if changed:
            _echo(stream, on=True)
        changed = False

    with around_stop(give_back, take) if stream.isatty() else contextlib.nullcontext():
        changed = _echo(stream, on=False)
        try:
            yield
        finally:
            if changed:
                _echo(stream, on=True)


def _is_in_front(stream: IO[str]) -> bool:
    """Whether this process is of the group that the terminal's shell has given it to."""
    try:
        return sys.platform != "win32" and os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # it is another session's
        return False


def _echo(stream: IO[str], *, on: bool) -> bool:
    """Whether the terminal writes what is typed from now on; returns whether that is a change."""
    if sys.platform == "win32" or not stream.isatty():
        return False
    import termios

    try:
        terminal = stream.fileno()
        mode = termios.tcgetattr(terminal)
        # In the background a process is stopped for this, and the shell has seen to its terminal.
        if bool(mode[3] & termios.ECHO) is on or not _is_in_front(stream):
            return False
        mode[3] ^= termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
    except (OSError, termios.error):
        return False
    return True


class TerminalText:
    """A terminal's stream for text; ``raw`` is the stream itself, for what draws on the screen on purpose."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        return self.raw.write(for_terminal(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def guarded(stream: TextIO) -> TextIO:
    """``stream`` for text from anywhere."""
    return TerminalText(stream) if stream.isatty() else stream  # type: ignore[return-value]


def raw(stream: TextIO) -> TextIO:
    """The stream below, where text has been seen to."""
    return stream.raw if isinstance(stream, TerminalText) else stream
