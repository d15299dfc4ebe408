"""A plan on the screen, or as JSON, CSV or Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from coe_cli.core.planner import ComparisonRow, Plan
from coe_cli.output.console import Output, TableFormat

if TYPE_CHECKING:
    from rich.text import Text

HEADER = ("part", "name", "expert", "context_length", "weights_mb", "kv_mb", "activation_mb", "total_mb")
COMPARE_HEADER = ("accounting", "weights_mb", "kv_mb", "activation_mb", "total_mb", "headroom_mb", "fits")
BAR_WIDTH = 60
MODEL_COLOURS = ("blue", "cyan", "magenta", "bright_blue", "bright_cyan", "bright_magenta")
LEVEL_COLOURS = {"normal": "green", "elevated": "yellow", "high": "dark_orange", "critical": "red"}


def write_plan(output: Output, plan: Plan, table_format: TableFormat, compare: list[ComparisonRow] | None) -> None:
    """The plan in ``table_format``; with ``compare`` the ways of counting stand side by side below or instead."""
    if table_format is TableFormat.JSON:
        document: dict[str, Any] = msgspec.to_builtins(plan)
        if compare is not None:
            document["compare"] = msgspec.to_builtins(compare)
        output.json(document)
    elif table_format is TableFormat.HUMAN:
        _write_human(output, plan, compare)
    elif compare is not None:
        rows = [[_cell(getattr(row, field)) for field in COMPARE_HEADER] for row in compare]
        output.table(COMPARE_HEADER, rows, table_format)
    else:
        output.table(HEADER, _rows(plan), table_format)


def _rows(plan: Plan) -> list[tuple[Any, ...]]:
    return [
        ("fixed", "", "", None, None, None, None, plan.fixed_mb),
        *(
            ("model", m.name, " ".join(m.experts), m.context_length, m.weights_mb, None, None, m.weights_mb)
            for m in plan.models
        ),
        *(
            ("slot", s.model, s.expert, s.context_length, None, s.kv_mb, s.activation_mb, s.total_mb)
            for s in plan.slots
        ),
        ("total", "", "", None, None, None, None, plan.total_mb),
        ("headroom", "", "", None, None, None, None, plan.headroom_mb),
    ]


def _write_human(output: Output, plan: Plan, compare: list[ComparisonRow] | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = output.console()
    budget_mb = plan.fixed_mb + plan.pool_mb
    console.print(
        f"[bold]{plan.profile.name}[/bold] · {plan.provider} · {plan.accounting} · budget {budget_mb:.0f} MB",
        end="\n\n",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "model", "expert"):
        table.add_column(title, overflow="fold")
    for title in ("context", "weights", "KV cache", "activations", "MB"):
        table.add_column(title, justify="right")
    colours = {model.name: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, model in enumerate(plan.models)}
    for part, name, expert, context, weights, kv, activation, total in _rows(plan):
        style = "bold" if part in ("total", "headroom") else colours.get(name, "")
        cells = (weights, kv, activation, total)
        table.add_row(
            part, name, expert, "" if context is None else str(context), *(_number(cell) for cell in cells), style=style
        )
    console.print(table)
    console.print(_bar(plan, colours))
    console.print(_legend(plan))
    if compare is not None:
        side = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        side.add_column("counted")
        for title in ("weights", "KV cache", "activations", "total", "headroom"):
            side.add_column(title, justify="right")
        side.add_column("fits")
        for row in compare:
            numbers = (row.weights_mb, row.kv_mb, row.activation_mb, row.total_mb, row.headroom_mb)
            side.add_row(row.accounting, *(_number(n) for n in numbers), "yes" if row.fits else "no")
        console.print(side)
    if plan.solution is not None:
        question = {
            "context": "largest context (tokens)",
            "slots": "most slots",
            "vram": "smallest budget (MB)",
        }[plan.solution.variable]
        console.print(f"{question}: [bold]{plan.solution.value}[/bold]")
    if plan.preload is not None:
        console.print(f"preload: {plan.preload.model} ({plan.preload.weights_mb:.0f} MB) stays within normal pressure")
    for warning in plan.warnings:
        style = "red" if warning.code == "does_not_fit" else "yellow"
        console.print(Text(f"{warning.code}: {warning.message}", style=style))
    verdict = "fits" if plan.fits else "does not fit"
    console.print(
        f"[bold]{verdict}[/bold] · at most {plan.max_slots} slots at this context, "
        f"at most {plan.max_context} tokens with these slots"
    )


def _bar(plan: Plan, colours: dict[str, str]) -> Text:
    """The budget as one bar; a plan that does not fit fills it and shows the overrun."""
    from rich.text import Text

    whole = max(plan.total_mb, plan.fixed_mb + plan.pool_mb, 1.0)
    level = LEVEL_COLOURS[plan.pressure.level]
    parts = [(plan.fixed_mb, "grey50", "▒")]
    parts += [(model.weights_mb, colours[model.name], "█") for model in plan.models]
    parts += [(slot.total_mb, level, "▓") for slot in plan.slots]
    bar, used_mb, drawn = Text("["), 0.0, 0
    for size, style, glyph in parts:
        used_mb += size
        end = round(used_mb / whole * BAR_WIDTH)
        bar.append(glyph * (end - drawn), style=style)
        drawn = max(drawn, end)
    bar.append("·" * (BAR_WIDTH - drawn), style="dim")
    return bar.append("]")


def _legend(plan: Plan) -> Text:
    from rich.text import Text

    ratio = "no pool" if plan.pressure.ratio is None else f"{plan.pressure.ratio:.0%}"
    free = f"{plan.headroom_mb:.0f} MB free" if plan.headroom_mb >= 0 else f"{-plan.headroom_mb:.0f} MB too much"
    legend = Text("▒ fixed  █ weights  ▓ KV and activations  · free   pressure ", style="dim")
    legend.append(f"{ratio} {plan.pressure.level}", style=LEVEL_COLOURS[plan.pressure.level])
    return legend.append(f", {free}\n", style="dim")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _cell(value: Any) -> Any:
    return ("yes" if value else "no") if isinstance(value, bool) else value
