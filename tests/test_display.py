"""Ctrl-C in the middle of drawing: each write to the terminal is interrupted once."""

from __future__ import annotations

import io
import itertools
import signal
import threading
from collections.abc import Callable

import pyte
import pytest
from rich.text import Text

from coe_cli.output import display
from coe_cli.output.console import Output
from coe_cli.output.live_answer import status_line
from coe_cli.output.progress_view import ProgressView
from coe_cli.runtime.progress import Step

WIDTH, HEIGHT = 80, 12


class Terminal(io.StringIO):
    """A terminal that types Ctrl-C when ``writes`` writes of the main thread have reached it."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self._left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        if threading.current_thread() is threading.main_thread():
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGINT)
        return count

    @property
    def interrupted(self) -> bool:
        return self._left <= 0

    def screen(self) -> list[str]:
        """The lines that are left, when the cursor is."""
        screen = pyte.Screen(WIDTH, HEIGHT)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        assert not screen.cursor.hidden
        return [line.rstrip() for line in screen.display if line.strip()]


def bars(output: Output) -> None:
    with ProgressView(output, "working") as view:
        view(Step("first", 0.5, 1.0))
        view.note("one")
        view(Step("second", 0.5, 1.0))
        view.note("two")


def lines(output: Output) -> None:
    shown = display.Display(output.console(on_stderr=True), lambda: Text("below"), 10)
    try:
        shown.print(Text("coe: one"))
        shown.print(Text("coe: two"))
    finally:
        shown.stop()


@pytest.fixture(autouse=True)
def terminal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("LINES", str(HEIGHT))
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("draw", [bars, lines])
def test_an_interrupted_write_leaves_whole_lines_and_the_cursor(draw: Callable[[Output], None]) -> None:
    writes = 1
    while True:
        terminal = Terminal(writes)
        try:
            draw(Output(stderr=terminal))
        except KeyboardInterrupt:
            display.end_all()  # as the entry point does
        else:
            assert not terminal.interrupted, "the interrupt is not lost"
            break
        left = terminal.screen()
        assert left == ["coe: one", "coe: two"][: len(left)]
        writes += 1
    assert terminal.screen() == ["coe: one", "coe: two"]
    assert writes > 4, "the start, both lines and the end were interrupted"


@pytest.mark.parametrize(
    ("width", "level", "shown"),
    [
        (80, "normal", "m answering · 3 s · 13 tokens · 6 tokens/s · 0.4 of 3.9 GB normal"),
        (60, "normal", "m answering · 3 s · 13 tokens · 6 tokens/s · 0.4 of 3.9 GB"),
        (60, "critical", "m answering · 3 s · 13 tokens · 6 tokens/s · critical"),
        (45, "normal", "m answering · 3 s · 13 tokens · 6 tokens/s"),
        (30, "normal", "m answering · 3 s · 13 tokens"),
        (12, "normal", "m answering"),
    ],
)
def test_the_status_of_an_answer_stays_on_one_line(width: int, level: str, shown: str) -> None:
    line = status_line(Text("m answering"), ("3 s", "13 tokens", "6 tokens/s"), "0.4 of 3.9 GB", level, width)
    assert line.plain == shown


def test_no_line_is_lost_between_what_is_printed_and_a_view_that_changes_its_height() -> None:
    """Both are drawn by threads of their own: a frame that is measured before another is written would wipe a line or leave one."""
    stream, heights = Terminal(0), itertools.cycle((1, 4, 2, 5))
    console = Output(stderr=stream).console(on_stderr=True)
    shown = display.Display(console, lambda: Text("\n".join(["view"] * next(heights))), 2000)
    for number in range(300):
        shown.print(Text(f"line {number}"))
    shown.stop()
    screen = pyte.Screen(WIDTH, 400)
    pyte.Stream(screen).feed(stream.getvalue().replace("\n", "\r\n"))
    assert [line.rstrip() for line in screen.display if line.strip()] == [f"line {number}" for number in range(300)]
