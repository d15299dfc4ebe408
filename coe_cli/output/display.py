"""What is redrawn at the bottom of the terminal, and is gone or whole at the end, whenever Ctrl-C comes.

An interrupt in the middle of Rich's buffering would leave half of a frame, or a console that never writes again and so a
hidden cursor. Here it waits for the end of each drawing. And a view leaves the last columns free: the terminal echoes ``^C``
behind it, which would wrap there, and a line of the view would stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from rich.constrain import Constrain
from rich.live import Live
from rich.text import Text

from coe_cli.interrupts import interrupt_put_off, stop_put_off
from coe_cli.output.terminal import typing_held_back, wrapped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_shown: Final[list[Display]] = []
_ECHO_CELLS: Final = len("^C") + 1


def view_width(console: Console) -> int:
    """Cells that a view may use."""
    return max(1, console.width - _ECHO_CELLS)


class Display:
    """``view`` drawn again and again below what is printed, from now until ``stop``; with ``keep`` its last frame stays."""

    def __init__(
        self, console: Console, view: Callable[[], RenderableType], frames_per_s: float, *, keep: bool = False
    ) -> None:
        self._console = console
        self._new_live = partial(
            Live,
            get_renderable=lambda: Constrain(view(), view_width(console)),
            console=console,
            refresh_per_second=frames_per_s,
            transient=not keep,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live = self._new_live()
        with interrupt_put_off():
            _shown.append(self)
            self._typing = contextlib.ExitStack()
            held_back = typing_held_back(console.file, self._hide, self._show)
            self._typing.enter_context(held_back)  # before there is a frame to type into
            with stop_put_off():
                self._live.start()

    @property
    def is_shown(self) -> bool:
        return self in _shown

    def note(self, message: str) -> None:
        """As ``Output.note``, above the view."""
        self.print(Text(wrapped(f"coe: {message}", self._console.file)))

    def print(self, renderable: RenderableType) -> None:
        """Above the view, for good; long lines are the terminal's to wrap."""
        # Rich measures under this lock and writes after it: a frame between the two would wipe a line, or stay.
        with interrupt_put_off(), stop_put_off(), self._live._lock:
            self._console.print(renderable, soft_wrap=True)

    def stop(self) -> None:
        """Take it off the screen; a second time does nothing."""
        with interrupt_put_off():
            if self.is_shown:
                with stop_put_off():
                    self._live.stop()
                self._typing.close()
                _shown.remove(self)

    def _hide(self) -> None:
        self._live.stop()

    def _show(self) -> None:
        if not self._live.is_started:
            self._live = self._new_live()  # the old one knows where its last frame was
            self._live.start()


def end_all() -> None:
    """Stop every display that an interrupt has left without an owner."""
    for display in tuple(_shown):
        display.stop()
