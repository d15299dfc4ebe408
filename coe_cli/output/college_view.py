"""What the college does, as a table: once, kept up to date on a terminal, or as JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from coe_cli.core.names import share_words, size_words
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine
from coe_cli.errors import DeviceLost
from coe_cli.output.console import Output
from coe_cli.output.tables import (
    LEVEL_STYLE,
    Column,
    Part,
    columns_of,
    folded,
    left,
    right,
    table,
    write_line,
    write_table,
)
from coe_cli.output.terminal import draws_on, for_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S = 0.5
_FRAMES_PER_S = 4
_SHOWN_NOTICES = 3
_BAR_CELLS = 20
_WAITS = {
    "loading": "its load",
    "evicting": "a model that is being taken out",
    "queue": "another model's load",
    "slots": "a free slot",
    "pressure": "memory, which is scarce",
    "min_resident": "another model, which was loaded a moment ago",
    "memory": "memory",
}
_NONE_RUNS = "no college is running; `coe serve` or a question starts one"


def write_status(output: Output, status: CollegeStatus, *, as_json: bool) -> None:
    """The status once; a sentence on stderr where no college runs."""
    if as_json:
        output.json(status)
    elif status.pid is None:
        output.note(_NONE_RUNS)
    else:
        _write(output, status, _Rates())


def watch_college(output: Output, look: Callable[[], CollegeStatus], *, as_json: bool) -> None:
    """The status until the college ends: a live table on a terminal, else one table or line of JSON each time."""
    with contextlib.nullcontext(output.json_line) if as_json else live_view(output) as show:
        while True:
            try:
                status = look()
            except DeviceLost:
                break
            show(status)
            time.sleep(_EVERY_S)
    output.note("the college has ended")


@contextlib.contextmanager
def live_view(output: Output) -> Iterator[Callable[[CollegeStatus], None]]:
    """A function that shows a status in place of the one before."""
    if not draws_on(output.stdout):
        rates = _Rates()
        yield lambda status: _write(output, status, rates.hear(status))
        return
    from rich.text import Text

    from coe_cli.output.display import Display, view_width

    shown: RenderableType = Text()
    rates, console = _Rates(), output.console()

    def show(status: CollegeStatus) -> None:
        nonlocal shown
        shown = status_table(status, view_width(console), rates.hear(status))

    display = Display(console, lambda: shown, _FRAMES_PER_S, keep=True)
    try:
        yield show
    finally:
        display.stop()


class ForegroundView:
    """What `coe serve --foreground` shows: the URL, then the live table on a terminal, else a line for each change."""

    def __init__(self, output: Output, live: contextlib.ExitStack) -> None:
        self._output, self._live = output, live
        self._show: Callable[[CollegeStatus], None] | None = None
        self._last = ""

    def ready(self, url: str) -> None:
        self._output.stdout.write(url + "\n")
        self._output.stdout.flush()
        # The table comes after the URL: what is written into the middle of it would stay there.
        self._show = self._live.enter_context(live_view(self._output)) if draws_on(self._output.stdout) else self._tell

    def show(self, status: CollegeStatus) -> None:
        if self._show is not None:
            self._show(status)

    def _tell(self, status: CollegeStatus) -> None:
        models = ", ".join(f"{m.name} {m.state} {m.running}/{m.max_slots}" for m in status.models) or "no models"
        level = status.pressure.level if status.pressure else "unknown"
        line = f"{models}; {status.queue_length} waiting; pressure {level}"
        if line != self._last:
            self._last = line
            self._output.note(line)


@contextlib.contextmanager
def foreground_view(output: Output) -> Iterator[ForegroundView]:
    """The view for as long as the college runs."""
    with contextlib.ExitStack() as live:
        yield ForegroundView(output, live)


class _Rates:
    """Tokens a second of each model between two looks, where there were two."""

    def __init__(self) -> None:
        self.per_model: dict[str, float] = {}
        self._before: dict[str, int] = {}
        self._at_s: float | None = None

    def hear(self, status: CollegeStatus) -> _Rates:
        if status.uptime_s is not None and self._at_s is not None and status.uptime_s > self._at_s:
            passed_s = status.uptime_s - self._at_s
            self.per_model = {
                model.name: (model.written_tokens - self._before.get(model.name, model.written_tokens)) / passed_s
                for model in status.models
            }
        self._at_s, self._before = status.uptime_s, {model.name: model.written_tokens for model in status.models}
        return self


def status_table(status: CollegeStatus, width: int | None = None, rates: _Rates | None = None) -> RenderableType:
    """For a terminal: the models as a table, with the college's own line above it and its last notices below."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text.assemble(*line) for line in _head(status)]
    if status.models:
        columns, rows = _table(status, width, rates or _Rates())
        shown = table(*columns, tight=True)
        for row in rows:
            shown.add_row(*map(Text, row))
        parts.append(shown)
    parts += [Text.assemble(*line) for line in _foot(status)]
    return Group(*parts)


def _write(output: Output, status: CollegeStatus, rates: _Rates) -> None:
    for line in _head(status):
        write_line(output, *line)
    if status.models:
        columns, rows = _table(status, columns_of(output), rates)
        write_table(output, columns, rows, tight=True)
    for line in _foot(status):
        write_line(output, *line)


def _head(status: CollegeStatus) -> list[list[Part]]:
    lines: list[list[Part]] = [
        [f"{status.url} · process {status.pid} · profile {status.profile} · up {_span(status.uptime_s)}"]
    ]
    if status.pressure is not None:
        level = status.pressure.level
        used, pool = status.usage_mb, status.pool_mb
        usage = "" if used is None or pool is None else f": {share_words(used, pool)}"
        told = f" ({status.pressure.ratio:.0%}{usage}) · {status.queue_length} waiting"
        lines.append(["pressure ", (level, LEVEL_STYLE.get(level, "")), told])
    return lines


def _foot(status: CollegeStatus) -> list[list[Part]]:
    waiting = [
        f"{m.waiting} for {m.name}: {_WAITS.get(m.waits_for, m.waits_for)}" for m in status.models if m.waits_for
    ]
    lines: list[list[Part]] = [[("waiting: " + "; ".join(waiting), "yellow")]] if waiting else []
    lines += [] if status.models else [["no model is loaded"]]
    return lines + [[(for_terminal(notice), "dim")] for notice in status.notices[-_SHOWN_NOTICES:]]


def _table(status: CollegeStatus, width: int | None, rates: _Rates) -> tuple[list[Column], list[list[str]]]:
    """Columns and rows: on a narrow terminal the name and what matters most, on a wide one bars of the pool too.

    Names give way first: they take more lines, and every figure stays whole.
    """
    per_model, pool_mb = rates.per_model, status.pool_mb or 0.0
    columns: list[tuple[Column, int, Callable[[ModelLine], str]]] = [
        (folded("model"), 0, lambda m: m.name),
        (left("state"), 0, lambda m: m.state),
        (right("pid"), 80, lambda m: "-" if m.pid is None else str(m.pid)),
        (right("slots"), 0, lambda m: f"{m.running}/{m.max_slots}"),
        (right("wait"), 0, lambda m: str(m.waiting)),
        (right("ctx"), 80, lambda m: "-" if m.context_length is None else f"{m.context_length:,}"),
        (right("cache"), 80, lambda m: size_words(m.kv_reserved_mb)),
        (right("reserved"), 0, lambda m: size_words(m.reserved_mb)),
        (right("measured"), 80, lambda m: "unknown" if m.measured_mb is None else size_words(m.measured_mb)),
        (right("idle"), 64, lambda m: "-" if m.idle_s is None else _span(m.idle_s)),
    ]
    if per_model:
        columns.append((right("tokens/s"), 72, lambda m: f"{per_model.get(m.name, 0.0):.0f}" if m.running else "-"))
    if width is not None and pool_mb:
        columns.append((left("of the pool"), 120, lambda m: _bar(max(m.reserved_mb, m.measured_mb or 0) / pool_mb)))
    shown = [(column, cell) for column, room, cell in columns if width is None or width >= room]
    return [column for column, _ in shown], [[cell(model) for _, cell in shown] for model in status.models]


def _bar(share: float) -> str:
    full = min(_BAR_CELLS, round(share * _BAR_CELLS))
    return "█" * full + "░" * (_BAR_CELLS - full) + f" {share:.0%}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600}h {whole % 3600 // 60}m"
