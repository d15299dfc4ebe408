"""Experts, and where the router sends questions, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import to_builtins

from coe_cli.core.routing.router import Decision
from coe_cli.output.console import Output, ReportFormat, TableFormat
from coe_cli.output.routing import decision_as_dict, describe
from coe_cli.output.tables import folded, is_narrow, left, write_line, write_table

if TYPE_CHECKING:
    from coe_cli.runtime.own_experts import ExpertCard

SCHEMA_VERSION = 1
LIST_FIELDS = ("name", "model", "installed", "own", "description", "examples")


def write_experts(output: Output, cards: list[ExpertCard], table_format: TableFormat) -> None:
    """One line an expert."""
    rows = [
        {**{field: getattr(card, field) for field in LIST_FIELDS}, "examples": len(card.examples)} for card in cards
    ]

    def human() -> None:
        narrow = is_narrow(output)
        words = () if narrow else (folded("knows"),)
        cells = [
            [
                f"{row['name']} *" if row["own"] else row["name"],
                row["model"],
                "yes" if row["installed"] else "no",
                *(() if narrow else (row["description"],)),
            ]
            for row in rows
        ]
        write_table(output, (left("expert"), left("model"), left("here"), *words), cells, ruled=True, tight=narrow)
        if any(row["own"] for row in rows):
            output.note("* is in your own file")

    document = {"schema_version": SCHEMA_VERSION, "experts": rows}
    output.emit(table_format, document, LIST_FIELDS, [list(row.values()) for row in rows], human)


def write_expert(output: Output, card: ExpertCard, report_format: ReportFormat) -> None:
    """One expert in full."""
    document = to_builtins(card)
    if report_format is ReportFormat.JSON:
        output.json({"schema_version": SCHEMA_VERSION, **document})
        return
    for key, value in document.items():
        if value in (None, [], ""):
            continue
        if isinstance(value, list) or (isinstance(value, str) and "\n" in value.strip()):
            lines = value if isinstance(value, list) else value.strip().splitlines()
            for line in (f"{key}:", *(f"  {line}" for line in lines)):
                write_line(output, line)
        else:
            shown = ("yes" if value else "no") if isinstance(value, bool) else str(value).strip()
            write_line(output, f"{key}: {shown}")


def write_trial(output: Output, name: str, decided: list[tuple[str, Decision]], report_format: ReportFormat) -> None:
    """Where each question goes."""
    hits = [name in {chosen.name for chosen in decision.experts} for _, decision in decided]
    if report_format is ReportFormat.JSON:
        rows = [
            {**decision_as_dict(text, decision, 0.0), "hit": hit}
            for (text, decision), hit in zip(decided, hits, strict=True)
        ]
        output.json({"schema_version": SCHEMA_VERSION, "expert": name, "questions": rows})
        return
    for (text, decision), hit in zip(decided, hits, strict=True):
        write_line(output, f"{'yes' if hit else 'no '}  {' '.join(text.split())}\n     {describe(decision)}")
    output.note(f"{sum(hits)} of {len(hits)} go to {name}")
