"""A benchmark for people and for programs: tables with a bar for each row, JSON, JSON lines while it runs, CSV, Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from coe_cli.core.bench.bench_compare import RATIO_FIELDS, RatioRow
from coe_cli.core.bench.bench_rows import ROW_FIELDS, BenchReport, BenchRow, Range, Spread
from coe_cli.core.names import counted, size_words
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import folded, right, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_MOST_BAR: Final = 24
_LEAST_BAR: Final = 4
_BETTER, _WORSE = 1.03, 0.97
_SPREADS: Final = Spread.__struct_fields__


class BenchFormat(StrEnum):
    """Formats of `coe bench`."""

    HUMAN = "human"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    MD = "md"


class Comparison(msgspec.Struct, frozen=True):
    """Ratios to an earlier run: its file, what differs between the two, and the rows that both have."""

    file: str
    differences: list[str]
    ratios: list[RatioRow]


class BenchLines:
    """JSON lines while it runs: ``run`` first, then each ``row`` when it is finished, then the rest."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def start(self, report: BenchReport) -> None:
        head = ("schema_version", "measured_at", "machine", "versions")
        self._line("run", {name: msgspec.to_builtins(getattr(report, name)) for name in head})

    def row(self, row: BenchRow) -> None:
        self._line("row", msgspec.to_builtins(row))

    def finish(self, report: BenchReport, comparison: Comparison | None) -> None:
        for load in report.loads:
            self._line("load", msgspec.to_builtins(load))
        for swap in report.swaps:
            self._line("swap", msgspec.to_builtins(swap))
        if comparison is not None:
            self._line("against", _against(comparison))
        self._line("end", {"interrupted": report.interrupted, "notes": report.notes})

    def _line(self, kind: str, value: dict[str, Any]) -> None:
        self._output.json_line({"type": kind, **value})


def write_report(
    output: Output, report: BenchReport, output_format: BenchFormat, comparison: Comparison | None = None
) -> None:
    """The whole report, except as JSON lines (``BenchLines``)."""
    document = msgspec.structs.asdict(report) | ({"against": _against(comparison)} if comparison is not None else {})
    ratios = comparison.ratios if comparison is not None else None
    header, rows = (_csv if output_format is BenchFormat.CSV else _markdown)(report.rows, ratios)
    human = partial(_write_human, output, report, comparison)
    output.emit(TableFormat(output_format.value), document, header, rows, human)
    if output_format in (BenchFormat.CSV, BenchFormat.MD):
        output.notes(_times(report))


def _against(comparison: Comparison) -> dict[str, Any]:
    rows = [
        {**_point(ratio.row), **{name: getattr(ratio, name) for name in (*RATIO_FIELDS, "lost")}}
        for ratio in comparison.ratios
    ]
    return {"file": comparison.file, "differences": comparison.differences, "ratios": rows}


def _point(row: BenchRow) -> dict[str, Any]:
    names = ("model", "provider", "prompt_tokens", "gen_tokens", "depth", "max_length", "slots")
    return dict(zip(names, row.point, strict=True))


def _csv(rows: Sequence[BenchRow], ratios: Sequence[RatioRow] | None) -> tuple[list[str], list[list[Any]]]:
    """Every key of a row; a spread becomes two columns, ratios to an earlier run follow."""
    spreads = [f"{name}_{end}" for name in _SPREADS for end in ("min", "max")]
    plain = [name for name in ROW_FIELDS if name != "spread"]
    header = [*plain, *spreads, *([f"{name}_ratio" for name in RATIO_FIELDS] if ratios is not None else [])]
    lines = []
    for row in rows:
        ends = [getattr(getattr(row.spread, name), end, None) for name in _SPREADS for end in ("min", "max")]
        lines.append([*(getattr(row, name) for name in plain), *ends, *_ratio_cells(row, ratios)])
    return header, lines


def _markdown(rows: Sequence[BenchRow], ratios: Sequence[RatioRow] | None) -> tuple[list[str], list[list[Any]]]:
    header = ["model", "provider", "prompt", "generated", "depth", "max_length", "slots", "load s", "first token s"]
    header += ["prefill tokens/s", "decode tokens/s", "of bandwidth", "peak MB", "plan MB", "error"]
    header += [f"{name} ratio" for name in RATIO_FIELDS] if ratios is not None else []
    lines = [
        [
            *row.point,
            _rounded(row.load_s, 2),
            _with_range(row.ttft_s, row.spread.ttft_s, 3),
            _with_range(row.prefill_tps, row.spread.prefill_tps, 1),
            _with_range(row.decode_tps, row.spread.decode_tps, 1),
            None if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}",
            _rounded(row.peak_mb, 0),
            _rounded(row.plan_mb, 0),
            row.error,
            *_ratio_cells(row, ratios),
        ]
        for row in rows
    ]
    return header, lines


def _ratio_cells(row: BenchRow, ratios: Sequence[RatioRow] | None) -> list[Any]:
    if ratios is None:
        return []
    found = next((ratio for ratio in ratios if ratio.row is row), None)
    return [None if found is None else _rounded(getattr(found, name), 3) for name in RATIO_FIELDS]


def _write_human(output: Output, report: BenchReport, comparison: Comparison | None) -> None:
    from rich.text import Text

    console = output.console()
    machine = report.machine
    gpus = f" · {', '.join(machine.adapters)}" if machine.adapters else ""
    memory = f" · {size_words(machine.memory_mb)}" if machine.memory_mb is not None else ""
    console.print(Text(f"{machine.cpu}, {machine.cores} cores{memory}{gpus}", style="bold"))
    for provider, bandwidth in machine.bandwidth_gb_per_s.items():
        told = "not measured" if bandwidth is None else f"{bandwidth:.1f} GB/s (a copy in this run)"
        console.print(Text(f"memory bandwidth, {provider}: {told}"))
    fastest = max((row.decode_tps for row in report.rows if row.decode_tps is not None), default=0.0)
    for model in dict.fromkeys((row.model, row.provider) for row in report.rows):
        rows = [row for row in report.rows if (row.model, row.provider) == model]
        console.print()
        console.print(Text(" · ".join([*model, *_shared(rows)]), style="bold"))
        console.print(_table(console, rows, fastest))
        for row in rows:
            if row.error is not None:
                console.print(Text(f"prompt {row.prompt_tokens}, depth {row.depth}: {row.error}", style="red"))
    lines = _times(report)
    if lines:
        console.print()
    for line in lines:
        console.print(Text(line))
    if comparison is not None:
        console.print()
        console.print(Text(f"against {comparison.file}; above 1 is better than there", style="bold"))
        console.print(_ratio_table(comparison.ratios))


def _times(report: BenchReport) -> list[str]:
    """Loads and swaps, one sentence each."""
    lines = []
    for load in report.loads:
        again = "" if load.repeat_s is None else f", again {_time(load.repeat_s, load.repeat_range_s)}"
        lines.append(f"{load.model}: first load {load.first_s:.2f} s{again}")
    for swap in report.swaps:
        took = swap.error if swap.swap_s is None else _time(swap.swap_s, swap.range_s)
        lines.append(f"swap {swap.from_model} → {swap.to_model}, to the first token: {took}")
    return lines


def _shared(rows: Sequence[BenchRow]) -> list[str]:
    """What all rows of a model have in common, which then needs no column."""
    first = rows[0]
    parts = [f"{first.gen_tokens} tokens generated"]
    parts += [f"context {first.max_length}"] if len({row.max_length for row in rows}) == 1 else []
    parts += [f"{first.slots} slots"] if len({row.slots for row in rows}) == 1 and first.slots > 1 else []
    parts += [f"depth {first.depth}"] if len({row.depth for row in rows}) == 1 and first.depth else []
    return [*parts, counted(first.repeats, "repeat")]


def _table(console: Console, rows: Sequence[BenchRow], fastest: float) -> Table:
    varying = [
        (title, name)
        for title, name in (
            ("prompt", "prompt_tokens"),
            ("depth", "depth"),
            ("context", "max_length"),
            ("slots", "slots"),
        )
        if name == "prompt_tokens" or len({getattr(row, name) for row in rows}) > 1
    ]
    titles = ("first token", "prefill/s", "decode/s", "bandwidth", "peak", "plan")
    cells = [
        (
            "unknown" if row.ttft_s is None else f"{row.ttft_s:.3f} s",
            _with_percent(row.prefill_tps, row.spread.prefill_tps),
            _with_percent(row.decode_tps, row.spread.decode_tps),
            "unknown" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}",
            "unknown" if row.peak_mb is None else size_words(row.peak_mb),
            "unknown" if row.plan_mb is None else size_words(row.plan_mb),
        )
        for row in rows
    ]
    shown = table(*(right(title) for title, _ in varying), *map(right, titles), tight=True)
    taken = sum(len(title) + 1 for title, _ in varying)
    taken += sum(
        1 + max(map(len, (title, *column))) for title, column in zip(titles, zip(*cells, strict=True), strict=True)
    )
    width = min(_MOST_BAR, console.width - taken - 1)
    if width >= _LEAST_BAR:
        shown.add_column("decode", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        bar = [_bar(row.decode_tps, fastest, width)] if width >= _LEAST_BAR else []
        shown.add_row(*(str(getattr(row, name)) for _, name in varying), *line, *bar)
    return shown


def _bar(value: float | None, most: float, width: int) -> Text:
    from rich.text import Text

    filled = round(width * value / most) if value and most else 0
    return Text("█" * filled, style="cyan").append("·" * (width - filled), style="dim")


def _ratio_table(ratios: Sequence[RatioRow]) -> Table:
    from rich.text import Text

    titles = ("prompt", "depth", "context", "slots", "load", "first token", "prefill", "decode", "memory")
    shown = table(folded("model"), *map(right, titles), tight=True)
    for ratio in ratios:
        row, cells = ratio.row, []
        for name in RATIO_FIELDS:
            value = getattr(ratio, name)
            style = "" if value is None else "green" if value > _BETTER else "red" if value < _WORSE else ""
            cells.append(Text("failed" if ratio.lost else "-" if value is None else f"{value:.2f}", style=style))
        numbers = (row.prompt_tokens, row.depth, row.max_length, row.slots)
        shown.add_row(row.model, *map(str, numbers), *cells)
    return shown


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _with_range(value: float | None, spread: Range | None, digits: int) -> str | None:
    if value is None or spread is None:
        return _rounded(value, digits)
    return f"{value:.{digits}f} ({spread.min:.{digits}f}–{spread.max:.{digits}f})"


def _with_percent(value: float | None, spread: Range | None) -> str:
    """A rate and half of its range as a share of it."""
    if value is None:
        return "unknown"
    number = f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return (
        number
        if spread is None or not value or spread.max == spread.min
        else f"{number} ±{(spread.max - spread.min) / 2 / value:.0%}"
    )


def _time(seconds: float, spread: Range | None) -> str:
    between = "" if spread is None or spread.min == spread.max else f" ({spread.min:.2f}–{spread.max:.2f})"
    return f"{seconds:.2f} s{between}"


def notes_of(report: BenchReport, comparison: Comparison | None) -> Iterable[str]:
    """What belongs on stderr, whatever the format."""
    yield from report.notes
    if comparison is not None:
        yield from (f"against {comparison.file}: {difference}" for difference in comparison.differences)
