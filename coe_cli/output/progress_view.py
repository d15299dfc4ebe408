"""Progress of a fetch or a conversion: a bar on a terminal, one line a stage elsewhere."""

from __future__ import annotations

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
    """Use as a context manager and call it with each step."""

    def __init__(self, output: Output, title: str) -> None:
        self._output, self._title = output, title
        self._stage = ""
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._output.stderr.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                console=self._output.console(on_stderr=True),
                transient=True,
            )
            self._progress.start()
        else:
            self._output.note(self._title)
        return self

    def __call__(self, step: StepLike) -> None:
        if self._progress is None:
            if step.stage != self._stage:
                self._output.note(f"{step.stage}{_amount(step, ' (', ')')}")
            self._stage = step.stage
            return
        if step.stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(step.stage, total=step.total, amount="")
            self._stage = step.stage
        self._progress.update(self._task, completed=step.done, total=step.total, amount=_amount(step))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _amount(step: StepLike, before: str = "", after: str = "") -> str:
    if not step.is_bytes:
        return f"{before}{step.done / step.total:.0%}{after}" if step.total and not before else ""
    total_mb = f"{step.total / 2**20:.0f} MB" if step.total else ""
    if before:
        return f"{before}{total_mb}{after}" if total_mb else ""
    return f"{step.done / 2**20:.0f} of {total_mb}" if total_mb else f"{step.done / 2**20:.0f} MB"
