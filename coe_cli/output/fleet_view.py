"""A fleet's plan on the screen, or as JSON, CSV or Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coe_cli.core.fleet.fleet_report import FleetPlan, FleetReport, Quantiles
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import folded, number, table

if TYPE_CHECKING:
    from rich.console import Console

HEADER = (
    "fleet",
    "node",
    "count",
    "keep",
    "experts",
    "requests_per_s",
    "utilisation",
    "swaps_per_hour",
    "waiting_p50_s",
    "waiting_p95_s",
)


def write_fleet(output: Output, report: FleetReport, table_format: TableFormat) -> None:
    """The report in ``table_format``; CSV and Markdown have one row for each group of equal nodes."""
    rows = _rows("planned", report.plan)
    rows += _rows("smallest", report.smallest) if report.smallest is not None else []
    output.emit(table_format, report, HEADER, rows, lambda: _write_human(output, report))


def _rows(name: str, plan: FleetPlan) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            group.node,
            group.count,
            group.keep,
            [share.expert for share in group.experts],
            group.requests_per_s,
            group.utilisation,
            group.swaps_per_hour,
            group.times.waiting_s.p50,
            group.times.waiting_s.p95,
        )
        for group in plan.placement
    ]


def _write_human(output: Output, report: FleetReport) -> None:
    from rich.text import Text

    console = output.console()
    _write_plan(console, "the fleet", report.plan)
    _write_experts(console, report.plan)
    for warning in report.warnings:
        style = "red" if warning.code in ("overloaded", "refused", "target_out_of_reach") else "yellow"
        console.print(Text(f"{warning.code}: {warning.message}", style=style))
    if report.target is None:
        return
    verdict = "[bold green]met[/]" if report.target.met else "[bold red]missed[/]"
    console.print(
        f"target: waiting at p95 within {report.target.waiting_p95_s:g} s · {verdict}"
        f" with {_seconds(report.plan.times.waiting_s.p95)}"
    )
    if report.smallest is not None:
        console.print()
        _write_plan(console, "the smallest fleet that meets it", report.smallest)


def _write_plan(console: Console, title: str, plan: FleetPlan) -> None:
    nodes = ", ".join(f"{count} × {name}" for name, count in plan.nodes.items() if count)
    console.print(f"[bold]{title}[/bold]: {nodes} · {plan.requests_per_s:g} requests/s · price {plan.price}")
    numbers = ("requests/s", "busy", "swaps/h", "waiting p50", "p95", "first token p95")
    groups = table(*map(folded, ("nodes", "keep", "experts")), *map(number, numbers), ruled=True)
    for group in plan.placement:
        groups.add_row(
            f"{group.count} × {group.node}",
            "\n".join(group.keep) + ("\n(in turns)" if group.takes_turns else ""),
            "\n".join(f"{s.expert} {s.part:.0%}" if s.part < 1 else s.expert for s in group.experts),
            f"{group.requests_per_s:.3g}",
            f"{group.utilisation:.0%}",
            f"{group.swaps_per_hour:.3g}",
            *_quantiles(group.times.waiting_s),
            _seconds(group.times.first_token_s.p95),
        )
    for name, count in plan.idle.items():
        groups.add_row(f"{count} × {name}", "(idle)", style="dim")
    groups.add_row(
        "all",
        "",
        "",
        f"{plan.requests_per_s:.3g}",
        f"{plan.utilisation:.0%}",
        f"{plan.swaps_per_hour:.3g}",
        *_quantiles(plan.times.waiting_s),
        _seconds(plan.times.first_token_s.p95),
        style="bold",
    )
    console.print(groups)


def _write_experts(console: Console, plan: FleetPlan) -> None:
    numbers = ("requests/s", "waiting p50", "p95", "first token p50", "p95", "answer p50", "p95")
    shown = table(folded("expert"), *map(number, numbers), ruled=True)
    for expert in plan.experts:
        times = expert.times
        shown.add_row(
            expert.expert,
            f"{expert.requests_per_s:.3g}",
            *_quantiles(times.waiting_s),
            *_quantiles(times.first_token_s),
            *_quantiles(times.latency_s),
        )
    console.print(shown)


def _quantiles(values: Quantiles) -> tuple[str, str]:
    return _seconds(values.p50), _seconds(values.p95)


def _seconds(value: float | None) -> str:
    return "refused" if value is None else f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
