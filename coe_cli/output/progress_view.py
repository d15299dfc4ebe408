"""Progress of fetches and conversions: a bar for each on a terminal, one line a stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from coe_cli.core.names import share_words, size_words
from coe_cli.output.console import Output
from coe_cli.output.terminal import draws_on

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from coe_cli.output.display import Display
    from coe_cli.runtime.progress import Step

_FRAMES_PER_S: Final = 10


class ProgressView:
    """Use as a context manager and call it with each step; ``row`` gives each of several works a bar of its own."""

    def __init__(self, output: Output, title: str, *, works: int = 1, total_bytes: float = 0.0) -> None:
        """``works`` above 1 have a bar for all of them on top, of ``total_bytes`` where that is known."""
        self._output, self._title = output, title
        self._works, self._total_bytes, self._ended = works, total_bytes, 0
        self._bytes: dict[str, float] = {}
        self._whole: TaskID | None = None
        self._stages: dict[str, str] = {}
        self._progress: Progress | None = None
        self._display: Display | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if draws_on(self._output.stderr):
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
            from rich.table import Column

            from coe_cli.output.display import Display

            console = self._output.console(on_stderr=True)
            self._progress = progress = Progress(
                SpinnerColumn(),
                TextColumn(
                    "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
                ),
                BarColumn(bar_width=12),
                _amount_column(),
                console=console,
                expand=True,
            )
            if self._works > 1:
                self._whole = progress.add_task(self._counted(), total=self._total_bytes or None, is_bytes=True)
            self._display = Display(console, progress.get_renderable, _FRAMES_PER_S)
        else:
            self._output.note(self._title)
        return self

    def __call__(self, step: Step) -> None:
        self._show("", step)

    @contextmanager
    def row(self, name: str) -> Iterator[Callable[[Step], None]]:
        """The same for one of several works that go on together; ``name`` stands before its stages."""
        try:
            yield lambda step: self._show(name, step)
        finally:
            self._ended += 1
            if self._progress is not None and name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
            if self._progress is not None and self._whole is not None:
                self._progress.update(self._whole, description=self._counted())

    def _counted(self) -> str:
        return f"{self._ended} of {self._works} are ready"

    def note(self, message: str) -> None:
        """One line on stderr, above the bars."""
        if self._display is None:
            self._output.note(message)
        else:
            self._display.note(message)

    def _show(self, name: str, step: Step) -> None:
        text = f"{name}: {step.stage[:1].lower()}{step.stage[1:]}" if name else step.stage
        if self._progress is None:
            if self._stages.get(name) != step.stage:
                size = f" ({size_words(step.total / 2**20)})" if step.is_bytes and step.total else ""
                self._output.note(f"{text}{size}")
            self._stages[name] = step.stage
            return
        if self._stages.get(name) != step.stage:
            if name in self._tasks:
                self._progress.remove_task(self._tasks[name])
            self._tasks[name] = self._progress.add_task(text, total=step.total, is_bytes=step.is_bytes)
            self._stages[name] = step.stage
        if step.is_bytes and self._whole is not None:
            self._bytes[name] = max(step.done, self._bytes.get(name, 0.0))
            self._progress.update(self._whole, completed=sum(self._bytes.values()))
        self._progress.update(self._tasks[name], completed=step.done, total=step.total)

    def __exit__(self, *error: object) -> None:
        if self._display is not None:
            self._display.stop()


def amount(
    done: float, total: float | None, *, is_bytes: bool, speed: float | None = None, left_s: float | None = None
) -> str:
    """How far a work is: "12 of 94 MB · 3.1 MB/s · 0:27 left", or "40%" when it is not bytes."""
    if not is_bytes:
        return f"{done / total:.0%}" if total else ""
    parts = [share_words(done / 2**20, total / 2**20) if total else size_words(done / 2**20)]
    if speed:
        parts.append(f"{speed / 2**20:.1f} MB/s")
        if left_s is not None and total and done < total:
            parts.append(f"{clock(left_s)} left")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: "0:09", "1:08:16"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _amount_column() -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class AmountColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            text = amount(
                task.completed,
                task.total,
                is_bytes=task.fields["is_bytes"],
                speed=task.speed,
                left_s=task.time_remaining,
            )
            return Text(text or clock(task.elapsed or 0.0))

    return AmountColumn(table_column=Column(no_wrap=True, justify="right"))
