"""What the college does, as a table: once, kept up to date on a terminal, or as JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from coe_cli.core.scheduling.college_status import CollegeStatus
from coe_cli.errors import DeviceLost
from coe_cli.output.console import Output
from coe_cli.output.tables import LEVEL_STYLE
from coe_cli.output.terminal import for_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S = 0.5
_FRAMES_PER_S = 4
_SHOWN_NOTICES = 3
_NONE_RUNS = "no college is running; `coe serve` or a question starts one"


def write_status(output: Output, status: CollegeStatus, *, as_json: bool) -> None:
    """The status once; a sentence on stderr where no college runs."""
    if as_json:
        output.json(status)
    elif status.pid is None:
        output.note(_NONE_RUNS)
    else:
        output.rich(status_table(status))


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
    if not output.stdout.isatty():
        yield lambda status: output.rich(status_table(status))
        return
    from rich.text import Text

    from coe_cli.output.display import Display

    shown: RenderableType = Text()

    def show(status: CollegeStatus) -> None:
        nonlocal shown
        shown = status_table(status)

    display = Display(output.console(), lambda: shown, _FRAMES_PER_S, keep=True)
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
        self._show = self._live.enter_context(live_view(self._output)) if self._output.stdout.isatty() else self._tell

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


def status_table(status: CollegeStatus) -> RenderableType:
    """The models as a table, with the college's own line above it and its last notices below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(f"{status.url} · process {status.pid} · profile {status.profile} · up {_span(status.uptime_s)}")
    parts: list[Any] = [head]
    if status.pressure is not None:
        level = Text(status.pressure.level, style=LEVEL_STYLE.get(status.pressure.level, ""))
        usage = f" ({status.pressure.ratio:.0%}: {_mb(status.usage_mb)} of {_mb(status.pool_mb)})"
        parts.append(Text.assemble("pressure ", level, usage, f" · {status.queue_length} waiting"))
    # Names give way first: on 80 columns they take more lines, and every figure stays whole.
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("model", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    for name in ("pid", "slots", "wait", "ctx", "KV MB", "reserved", "measured", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in status.models:
        table.add_row(
            model.name,
            model.state,
            "-" if model.pid is None else str(model.pid),
            f"{model.running}/{model.max_slots}",
            str(model.waiting),
            "-" if model.context_length is None else str(model.context_length),
            str(model.kv_reserved_mb),
            str(model.reserved_mb),
            "unknown" if model.measured_mb is None else f"{model.measured_mb:.0f}",
            "-" if model.idle_s is None else _span(model.idle_s),
        )
    parts.append(table if status.models else Text("no model is loaded"))
    parts += [Text(for_terminal(notice), style="dim") for notice in status.notices[-_SHOWN_NOTICES:]]
    return Group(*parts)


def _mb(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MB"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600}h {whole % 3600 // 60}m"
