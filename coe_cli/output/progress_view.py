"""Progress of fetches and conversions: a bar for each on a terminal, one line a stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from coe_cli.output.console import Output


class StepLike(Protocol):
    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> float: ...
    @property
    def total(self) -> float | None: ...
    @property
    def is_bytes(self) -> bool: ...


class ProgressView:
    """Use as a context manager and call it with each step; ``of`` gives each of several works a bar of its own."""

    def __init__(self, output: Output, title: str) -> None:
        self._output, self._title = output, title
        self._stages: dict[str, str] = {}
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._output.stderr.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                _amount_column(),
                TimeElapsedColumn(),
                console=self._output.console(on_stderr=True),
                transient=True,
            )
            self._progress.start()
        else:
            self._output.note(self._title)
        return self

    def __call__(self, step: StepLike) -> None:
        self._show("", step)

    def of(self, name: str) -> Callable[[StepLike], None]:
        """The same for one of several works that go on together; ``name`` stands before its stages."""
        return lambda step: self._show(name, step)

    def _show(self, name: str, step: StepLike) -> None:
        text = f"{name}: {step.stage}" if name else step.stage
        if self._progress is None:
            if self._stages.get(name) != step.stage:
                size = f" ({step.total / 2**20:.0f} MB)" if step.is_bytes and step.total else ""
                self._output.note(f"{text}{size}")
            self._stages[name] = step.stage
            return
        if self._stages.get(name) != step.stage:
            if name in self._tasks:
                self._progress.remove_task(self._tasks[name])
            self._tasks[name] = self._progress.add_task(text, total=step.total, is_bytes=step.is_bytes)
            self._stages[name] = step.stage
        self._progress.update(self._tasks[name], completed=step.done, total=step.total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def amount(
    done: float, total: float | None, *, is_bytes: bool, speed: float | None = None, left_s: float | None = None
) -> str:
    """How far a work is: "12 of 94 MB · 3.1 MB/s · 0:27 left", or "40%" when it is not bytes."""
    if not is_bytes:
        return f"{done / total:.0%}" if total else ""
    mb = f"{done / 2**20:.0f} of {total / 2**20:.0f} MB" if total else f"{done / 2**20:.0f} MB"
    parts = [mb]
    if speed:
        parts.append(f"{speed / 2**20:.1f} MB/s")
        if left_s is not None and total and done < total:
            minutes, seconds = divmod(round(left_s), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    return " · ".join(parts)


def _amount_column() -> Any:
    from rich.progress import ProgressColumn, Task
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
            return Text(text)

    return AmountColumn()
