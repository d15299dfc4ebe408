"""A benchmark as a picture: decode against depth, prefill against prompt length, memory predicted and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from coe_cli.core.bench.bench_rows import BenchReport, BenchRow
from coe_cli.errors import UsageError
from coe_cli.package import install_command
from coe_cli.replacing import move, remove

_SUFFIXES: Final = (".png", ".svg")
_MOST_BARS: Final = 12
_PLANNED, _MEASURED = "#b0bec5", "#00838f"


def check_plot(path: Path) -> None:
    """See to it before the run that ``path`` can be drawn.

    Raises:
        UsageError: another kind of file, or matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{path} is neither .png nor .svg", "Name a file that ends so.")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", f"Install it: {install_command('plot')}")


def draw(report: BenchReport, path: Path) -> None:
    """Write the picture, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (decode, prefill, memory) = pyplot.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    rows = [row for row in report.rows if row.error is None]
    _lines(decode, rows, lambda row: row.decode_depth, "decode_tps")
    decode.set(title="Decode", xlabel="tokens in the cache", ylabel="tokens/s")
    _lines(prefill, rows, lambda row: row.prompt_tokens, "prefill_tps")
    prefill.set(title="Prefill", xlabel="prompt tokens", ylabel="tokens/s")
    _bars(memory, rows)
    memory.set(title="Memory", ylabel="MB")
    machine = report.machine
    where = " · ".join(
        [machine.cpu, *machine.adapters, *(f"{k} {v}" for k, v in report.versions.items() if "genai" in k)]
    )
    figure.suptitle(f"{where} · {report.measured_at[:10]}", fontsize=10)
    scratch = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(scratch, dpi=120)
        move(scratch, path)
    except OSError as error:
        remove(scratch)
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Name another file.") from None
    finally:
        pyplot.close(figure)


def _lines(axes: Any, rows: Sequence[BenchRow], x: Callable[[BenchRow], int], name: str) -> None:
    """One line for each model, depth or length apart from ``x``; a bar at each point spans its repeats."""
    drawn = False
    for label, group in _series(rows, prefill=name == "prefill_tps").items():
        known = sorted((row for row in group if getattr(row, name) is not None), key=x)
        if not known:
            continue
        values = [getattr(row, name) for row in known]
        spans = [getattr(row.spread, name) for row in known]
        below = [v - s.min if s else 0.0 for v, s in zip(values, spans, strict=True)]
        above = [s.max - v if s else 0.0 for v, s in zip(values, spans, strict=True)]
        axes.errorbar([x(row) for row in known], values, yerr=(below, above), marker="o", capsize=3, label=label)
        drawn = True
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _series(rows: Sequence[BenchRow], *, prefill: bool) -> dict[str, list[BenchRow]]:
    """Rows by what else they differ in; the label names only what is not the same everywhere."""
    found: dict[str, list[BenchRow]] = {}
    for row in rows:
        parts = [row.model]
        parts += [row.provider] if len({r.provider for r in rows if r.model == row.model}) > 1 else []
        parts += [f"context {row.max_length}"] if _crossed(rows, row) else []
        parts += [f"{row.slots} slots"] if len({r.slots for r in rows}) > 1 else []
        parts += [f"depth {row.depth}"] if prefill and len({r.depth for r in rows}) > 1 else []
        found.setdefault(", ".join(parts), []).append(row)
    return found


def _crossed(rows: Sequence[BenchRow], row: BenchRow) -> bool:
    """Whether the same point of the line was measured at several context lengths."""
    same = [
        other.max_length
        for other in rows
        if (other.model, other.provider, other.slots, other.depth, other.prompt_tokens)
        == (row.model, row.provider, row.slots, row.depth, row.prompt_tokens)
    ]
    return len(set(same)) > 1


def _bars(axes: Any, rows: Sequence[BenchRow]) -> None:
    """Plan beside measurement; of many rows those with the most memory planned for each model and context."""
    widest: dict[tuple[str, int, int], BenchRow] = {}
    for row in rows:
        key = (row.model, row.max_length, row.slots) if len(rows) > _MOST_BARS else (row.model, len(widest), 0)
        if key not in widest or (row.plan_mb or 0) > (widest[key].plan_mb or 0):
            widest[key] = row
    shown = [row for row in list(widest.values())[:_MOST_BARS] if row.peak_mb is not None or row.plan_mb is not None]
    if not shown:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    places = range(len(shown))
    for name, label, shift, colour in (
        ("plan_mb", "predicted", -0.2, _PLANNED),
        ("peak_mb", "measured", 0.2, _MEASURED),
    ):
        known = [(place, value) for place, row in zip(places, shown, strict=True) if (value := getattr(row, name))]
        axes.bar([place + shift for place, _ in known], [value for _, value in known], 0.4, label=label, color=colour)
    labels = [_bar_label(row, shown) for row in shown]
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(shown) > 4 else {}
    axes.set_xticks(list(places), labels, fontsize=7, **turned)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


def _bar_label(row: BenchRow, shown: Sequence[BenchRow]) -> str:
    lines = [row.model] if len({r.model for r in shown}) > 1 else []
    lines.append(f"prompt {row.prompt_tokens}")
    lines += [f"depth {row.depth}"] if len({r.depth for r in shown}) > 1 else []
    lines += [f"context {row.max_length}"] if len({r.max_length for r in shown}) > 1 else []
    lines += [f"{row.slots} slots"] if len({r.slots for r in shown}) > 1 else []
    return (", " if len(shown) > 4 else "\n").join(lines)
