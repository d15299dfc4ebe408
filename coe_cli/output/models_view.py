"""The list of models as a table, JSON, CSV or Markdown."""

from __future__ import annotations

from typing import Any

from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import folded, is_narrow, left, right, write_table

MODELS_SCHEMA_VERSION = 1


def write_models(output: Output, rows: list[Any], table_format: TableFormat) -> None:
    """Write ``rows`` (runtime.inventory.ModelRow)."""
    header = list(rows[0].__struct_fields__) if rows else ["name"]
    cells = ([getattr(row, field) for field in header] for row in rows)
    document = {"schema_version": MODELS_SCHEMA_VERSION, "models": rows}
    output.emit(table_format, document, header, cells, lambda: _write_human(output, rows))


_HEADER = ("model", "disk", "size", "context", "cache/token", "on", "experts")


def _write_human(output: Output, rows: list[Any]) -> None:
    cells: list[tuple[str, ...]] = [
        (
            f"{row.name} (default)" if row.default else row.name,
            "yes" if row.on_disk else "no",
            _or_unknown(row.size_mb, "{:.0f} MB"),
            _or_unknown(row.context_length, "{}"),
            _or_unknown(row.kv_bytes_per_token, "{} B"),
            row.provider or "unknown",
            ", ".join(row.experts) or "-",
        )
        for row in rows
    ]
    numbers = ("size", "context", "cache/token")
    columns = [right(name) if name in numbers else left(name) for name in _HEADER[1:-1]]
    if is_narrow(output):
        names = folded(_HEADER[0], max_width=max((len(name) for name, *_ in cells), default=0))
        below = [("\n  ".join([row[0], *model.experts]), *row[1:-1]) for row, model in zip(cells, rows, strict=True)]
        write_table(output, [names, *columns], below, tight=True)
    else:
        write_table(output, [left(_HEADER[0]), *columns, folded(_HEADER[-1])], cells)
    for row in rows:
        if row.problem:
            output.note(f"{row.problem}. {row.hint}")
        if row.duplicate_of:
            output.note(f"{row.name} holds the same weights as {', '.join(row.duplicate_of)}: one of them can go")


def _or_unknown(value: float | int | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)
