"""A plan on the screen, or as JSON, CSV or Markdown."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.core.memory.planner import ComparisonRow, Plan
from coe_cli.core.names import counted, size_words
from coe_cli.core.providers import spec_of
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import LEVEL_STYLE, columns_of, folded, is_narrow, left, right, write_line, write_table

HEADER = ("part", "name", "expert", "context_length", "weights_mb", "kv_mb", "activation_mb", "total_mb")
COMPARE_HEADER = ("accounting", "weights_mb", "kv_mb", "activation_mb", "total_mb", "headroom_mb", "fits")
BAR_WIDTH = 60
_ROOM_FOR_PARTS = 66
"""Columns of a terminal below which a row has its total alone."""
_ROOM_FOR_LEGEND = 80
"""Columns of a terminal below which the bar's legend and the pressure are two lines."""
MODEL_COLOURS = ("blue", "cyan", "magenta", "steel_blue", "dark_cyan", "medium_purple")


def write_plan(output: Output, plan: Plan, table_format: TableFormat, compare: list[ComparisonRow] | None) -> None:
    """The plan in ``table_format``; with ``compare`` the ways of counting stand side by side below or instead."""
    document: dict[str, Any] = msgspec.to_builtins(plan)
    header: tuple[str, ...] = HEADER
    rows: list[tuple[Any, ...]] = _rows(plan)
    if compare is not None:
        document["compare"] = compare
        header = COMPARE_HEADER
        rows = [(*(getattr(row, field) for field in header[:-1]), "yes" if row.fits else "no") for row in compare]
    output.emit(table_format, document, header, rows, lambda: _write_human(output, plan, compare))


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
    budget_mb = plan.fixed_mb + plan.pool_mb
    head = f" · {plan.provider} · {plan.accounting} · budget {size_words(budget_mb)}"
    write_line(output, (plan.profile.name, "bold"), head)
    colours = {model.name: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, model in enumerate(plan.models)}
    narrow = is_narrow(output)
    rows, styles = [], []
    for part, name, expert, context, *sizes in _rows(plan):
        names = [expert if part == "slot" else name] if narrow else [name, expert]
        rows.append([part, *names, "" if context is None else f"{context:,}", *map(_number, sizes)])
        styles.append("bold" if part in ("total", "headroom") else colours.get(name, ""))
    if narrow:  # a slot's colour says whose it is
        titles, words = ("context", "weights", "KV", "activ.", "total"), [folded("model or expert")]
    else:
        titles, words = ("context", "weights", "KV cache", "activations", "total"), [folded("model"), folded("expert")]
    columns = [left(), *words, *map(right, titles)]
    if is_narrow(output, _ROOM_FOR_PARTS):
        columns, rows = [*columns[:3], columns[-1]], [[*row[:3], row[-1]] for row in rows]
    write_table(output, columns, rows, styles=styles, ruled=True, tight=narrow)
    write_line(output, *_bar(plan, colours, min(BAR_WIDTH, (columns_of(output) or 100) - 2)))
    glyphs, *pressure = _legend(plan)
    if is_narrow(output, _ROOM_FOR_LEGEND):
        write_line(output, glyphs)
        write_line(output, *pressure)
    else:
        write_line(output, glyphs, "   ", *pressure)
    if compare is not None:
        _write_comparison(output, compare)
    if plan.solution is not None:
        value = plan.solution.value
        question, answer = {
            "context": ("largest context (tokens)", str(value)),
            "slots": ("most slots", str(value)),
            "vram": ("smallest budget", f"{size_words(value)} (--vram-mb {value})"),
        }[plan.solution.variable]
        write_line(output, f"{question}: ", (answer, "bold"))
    if plan.preload is not None:
        preload = f"preload: {plan.preload.model} ({size_words(plan.preload.weights_mb)}) stays within normal pressure"
        write_line(output, preload)
    if to_pull := [model.name for model in plan.models if model.source == "catalog"]:
        write_line(output, f"not on disk yet: {', '.join(to_pull)}")
    for warning in plan.warnings:
        if warning.code == "guide_differs" and compare is None and plan.accounting != "guide":
            continue
        style = "red" if warning.code == "does_not_fit" else "yellow"
        write_line(output, (f"{warning.code}: {warning.message}", style))
    slots = f"at most {counted(plan.max_slots, 'slot')}" if plan.max_slots else "not one slot of these models"
    most = f" · {slots} at this context"
    if plan.max_context:
        most += f", at most {plan.max_context:,} tokens with these slots"
    write_line(output, ("fits" if plan.fits else "does not fit", "bold"), most)
    on = spec_of(plan.provider)
    if plan.max_prompt and not on.capabilities.prompt_chunks:
        write_line(output, f"longest prompt: {plan.max_prompt:,} tokens, for {on.label} reads each whole")


def _write_comparison(output: Output, compare: list[ComparisonRow]) -> None:
    narrow = is_narrow(output)
    titles = ("weights", "KV", "activ.", "total", "headroom")
    numbers = [right(title) for title in (titles if narrow else ("weights", "KV cache", "activations", *titles[3:]))]
    rows = []
    for row in compare:
        sizes = (row.weights_mb, row.kv_mb, row.activation_mb, row.total_mb, row.headroom_mb)
        rows.append([row.accounting, *map(_number, sizes), "yes" if row.fits else "no"])
    columns = [left("counted"), *numbers, left("fits")]
    if is_narrow(output, _ROOM_FOR_PARTS):
        columns, rows = [columns[0], *columns[4:]], [[row[0], *row[4:]] for row in rows]
    write_table(output, columns, rows, ruled=True, tight=narrow)


def _bar(plan: Plan, colours: dict[str, str], width: int) -> list[str | tuple[str, str]]:
    """The budget as one bar; a plan that does not fit fills it and shows the overrun."""
    whole = max(plan.total_mb, plan.fixed_mb + plan.pool_mb, 1.0)
    level = LEVEL_STYLE[plan.pressure.level]
    parts = [(plan.fixed_mb, "grey50", "▒")]
    parts += [(model.weights_mb, colours[model.name], "█") for model in plan.models]
    parts += [(slot.total_mb, level, "▓") for slot in plan.slots]
    bar: list[str | tuple[str, str]] = ["["]
    used_mb, drawn = 0.0, 0
    for size, style, glyph in parts:
        used_mb += size
        end = round(used_mb / whole * width)
        bar.append((glyph * (end - drawn), style))
        drawn = max(drawn, end)
    return [*bar, ("·" * (width - drawn), "dim"), "]"]


def _legend(plan: Plan) -> list[tuple[str, str]]:
    ratio = "no pool" if plan.pressure.ratio is None else f"{plan.pressure.ratio:.0%}"
    free = (
        f"{size_words(plan.headroom_mb)} free" if plan.headroom_mb >= 0 else f"{size_words(-plan.headroom_mb)} too much"
    )
    return [
        ("▒ fixed  █ weights  ▓ slots  · free", "dim"),
        ("pressure ", "dim"),
        (f"{ratio} {plan.pressure.level}", LEVEL_STYLE[plan.pressure.level]),
        (f", {free}", "dim"),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else size_words(value)
