"""What `coe batch` shows on stderr: a live line on a terminal, now and then one line in a pipe, and the sum at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from coe_cli.core.batch.batch_progress import Progress
from coe_cli.core.names import counted
from coe_cli.output.console import Output, Wait
from coe_cli.output.progress_view import clock
from coe_cli.output.tables import LEVEL_STYLE
from coe_cli.output.terminal import draws_on, for_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coe_cli.output.display import Display

_FRAMES_PER_S = 2
_LINE_EVERY_S = 10.0
_SHOWN_FAILURES = 20


class TerminalBatchView:
    """Use as a context manager. ``quiet`` leaves only what is wrong."""

    def __init__(self, output: Output, *, quiet: bool = False) -> None:
        self._output, self._quiet = output, quiet
        self._display: Display | None = None
        self._wait = Wait(output)
        self._read = (0, 0)
        self._progress: Callable[[], Progress] | None = None
        self._failures = 0
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        if draws_on(self._output.stderr) and not self._quiet:
            from coe_cli.output.display import Display

            self._display = Display(self._output.console(on_stderr=True), self._view, _FRAMES_PER_S)
        elif not self._quiet:
            self._wait.begin("preparing the rows, and loading the first model")
        return self

    def __exit__(self, *error: object) -> None:
        self._wait.end()
        if self._display is not None:
            self._display.stop()
            self._display = None
        if self._failures > _SHOWN_FAILURES:
            self._output.note(f"and {self._failures - _SHOWN_FAILURES} more rows failed: they are in the output")

    def note(self, message: str) -> None:
        if self._display is None:
            self._output.note(for_terminal(message) if self._output.stderr.isatty() else message)
        else:
            self._display.note(for_terminal(message))

    def failed(self, line: int, message: str) -> None:
        self._failures += 1
        if self._failures <= _SHOWN_FAILURES:
            self.note(f"line {line}: {' '.join(message.split())}")

    def reading(self, lines: int, total: int) -> None:
        self._read = (lines, total)
        self._now_and_then(lambda: f"read {lines} of {total} lines")

    def running(self, progress: Callable[[], Progress]) -> None:
        self._progress = progress
        now = progress()
        if now.earlier and not self._quiet:
            self.note(f"going on: {now.earlier} of {now.total} rows were done before")

    def advanced(self) -> None:
        self._wait.end()
        if self._progress is not None:
            progress = self._progress
            self._now_and_then(lambda: progress_line(progress()))

    def summary(self, progress: Progress) -> None:
        """The last line."""
        if not self._quiet or progress.failed:
            self._output.note(summary_line(progress))

    def _now_and_then(self, text: Callable[[], str]) -> None:
        if self._display is None and not self._quiet and time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._output.note(text())

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        if self._progress is None:
            lines, total = self._read
            if lines == total:  # a small input is not counted; then models are looked at, or room is waited for
                return Text("preparing")
            grid.add_row(
                Text("reading"), ProgressBar(max(total, 1), lines, width=30), Text(f"{lines} of {total} lines")
            )
            return grid
        now = self._progress()
        grid.add_row(ProgressBar(max(now.total, 1), now.done, width=30), Text(_counts(now)))
        level = Text(now.engine.pressure or "unknown", style=LEVEL_STYLE.get(now.engine.pressure, ""))
        failed = Text(f" · {now.failed} failed", style="red") if now.failed else Text()
        return Group(grid, Text.assemble(f"{_who(now)} · pressure ", level, failed))


def progress_line(now: Progress) -> str:
    """One line for a log."""
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{_counts(now)}, {_who(now)}, pressure {now.engine.pressure or 'unknown'}{failed}".replace(" · ", ", ")


def summary_line(now: Progress) -> str:
    """What came of the batch."""
    if now.total == 0:
        return "the input has no rows"
    here = now.done - now.earlier
    if here == 0:
        text = f"all {counted(now.total, 'row')} are in the output already"
        if now.failed:
            return f"{text}; {now.failed} failed (--retry-failed runs them again)"
    else:
        earlier = f" ({now.earlier} before)" if now.earlier else ""
        by = f" by {', '.join(now.answered_by)}" if now.answered_by else ""
        text = f"{counted(now.done, 'row')}{earlier} in {clock(now.elapsed_s)}{by}"
        if tokens := now.engine.completion_tokens:
            loads = counted(now.engine.loads, "load")
            text += f": {tokens} tokens, {now.tokens_per_s or 0:.1f} tokens/s, {loads}"
    return f"{text}; {now.failed} failed" if now.failed else text


def _counts(now: Progress) -> str:
    parts = [f"{now.done} of {now.total} rows"]
    if now.rows_per_s:
        parts.append(f"{now.rows_per_s:.1f} rows/s" if now.rows_per_s >= 1 else f"{60 * now.rows_per_s:.1f} rows/min")
    if now.left_s is not None:
        parts.append(f"{clock(now.left_s)} left")
    return " · ".join(parts)


def _who(now: Progress) -> str:
    names = ", ".join(now.engine.models) or "loading"
    return f"{names} · {now.tokens_per_s:.1f} tokens/s" if now.tokens_per_s else names
