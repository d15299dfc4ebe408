"""The list of models as a table, JSON, CSV or Markdown, and one model in full for people."""

from __future__ import annotations

from typing import Any

from coe_cli.core.names import size_words
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import folded, is_narrow, left, right, write_table

MODELS_SCHEMA_VERSION = 1


def write_models(output: Output, rows: list[Any], table_format: TableFormat) -> None:
    """Write ``rows`` (runtime.inventory.ModelRow)."""
    header = list(rows[0].__struct_fields__) if rows else ["name"]
    cells = ([getattr(row, field) for field in header] for row in rows)
    document = {"schema_version": MODELS_SCHEMA_VERSION, "models": rows}
    output.emit(table_format, document, header, cells, lambda: _write_human(output, rows))


_ROOM_FOR_FIGURES = 62
_HEADER = ("model", "disk", "size", "context", "cache/token", "on", "experts")


def _write_human(output: Output, rows: list[Any]) -> None:
    cells: list[tuple[str, ...]] = [
        (
            f"{row.name} (default)" if row.default else row.name,
            "yes" if row.on_disk else "no",
            "unknown" if row.size_mb is None else size_words(row.size_mb),
            _or_unknown(row.context_length, "{:,}"),
            _or_unknown(row.kv_bytes_per_token, "{:,} B"),
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
        columns = [names, *columns]
        if is_narrow(output, _ROOM_FOR_FIGURES):  # without context and cache
            columns, below = [*columns[:3], columns[-1]], [(*row[:3], row[-1]) for row in below]
        write_table(output, columns, below, tight=True)
    else:
        write_table(output, [left(_HEADER[0]), *columns, folded(_HEADER[-1])], cells)
    for row in rows:
        if row.problem:
            output.note(f"{row.problem}. {row.hint}")
        if row.duplicate_of and row.name < min(row.duplicate_of):
            output.note(f"{row.name} holds the same weights as {', '.join(row.duplicate_of)}: one of them can go")


def _or_unknown(value: float | int | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def write_card(output: Output, card: Any) -> None:
    """Write ``card`` (runtime.model_card.ModelCard) as names and values."""
    shape, cache, plan = card.shape, card.cache, card.plan
    formats = ", ".join(f"{count} × {kind}" for kind, count in (card.weight_formats or {}).items())
    head = {"last": "on the last position only", "all": f"on every position (coe models optimize {card.name})"}
    rows = [
        ("model", card.name),
        ("about", card.description or "-"),
        ("folder", card.folder or f"not on disk (coe models pull {card.name})"),
        ("from", card.origin or "unknown"),
        ("licence", card.licence or "unknown"),
        ("experts", ", ".join(card.experts) or "-"),
        ("built for", card.provider),
        ("runs on", ", ".join(card.runs_on)),
        ("type", card.model_type or "unknown"),
        ("context", f"{card.context_length:,} tokens"),
        (
            "shape",
            f"{shape.num_hidden_layers} layers, hidden size {shape.hidden_size}, {shape.num_attention_heads} heads of "
            f"{shape.head_size}, {shape.num_key_value_heads} KV heads ({card.attention}), vocabulary {shape.vocab_size:,}",
        ),
        ("weights", f"{size_words(card.weights_mb)}{': ' + formats if formats else ''}"),
        ("head", head.get(card.head_positions, "unknown")),
        ("chat template", {True: "yes", False: "no", None: "unknown"}[card.chat_template]),
        (
            "KV cache",
            f"{cache.kv_bytes_per_token:,} bytes a token, {size_words(cache.kv_mb)} for {cache.context_length:,} tokens "
            f"(profile {cache.profile})",
        ),
        (
            "plan",
            f"{size_words(plan.weights_mb)} weights + {size_words(plan.kv_mb)} cache + {size_words(plan.activation_mb)} prefill = "
            f"{size_words(plan.total_mb)} with one slot on {plan.provider}",
        ),
        ("measured", _measured(card.calibration)),
        ("same weights as", ", ".join(card.duplicate_of) or "no other model"),
        *((f"for {build.provider}", _build(build)) for build in card.builds if len(card.builds) > 1),
    ]
    write_table(output, [left(), folded()], [[[(name, "bold")], value] for name, value in rows])
    if card.files:
        files = [[file.name, _file_size(file.size_mb), file.sha256 or "not recorded"] for file in card.files]
        write_table(output, [folded("file"), right("size"), folded("SHA-256")], files)


def _file_size(mb: float) -> str:
    """A file's size, of which small ones have kilobytes."""
    return size_words(mb) if mb >= 1 else f"{max(1, round(mb * 1024))} KB"


def _build(build: Any) -> str:
    """Where a build comes from, and whether that is known to be right."""
    unseen = "" if build.verified else ", checked when it is pulled first"
    return f"{build.uri} ({build.licence or 'licence unknown'}, about {size_words(build.download_mb)}{unseen})"


def _measured(found: Any) -> str:
    """What real runs measured, and how far the plan was off."""
    if found is None:
        return "no run is recorded yet"
    parts = []
    if found.load_mb is not None:
        parts.append(f"{size_words(found.load_mb)} after a load")
    if found.slot_ratio is not None:
        parts.append(f"slots {found.slot_ratio:.2f} × the plan's")
    if found.error is not None:
        parts.append(f"the plan without it is off by {found.error:+.1%}")
    where = f"{found.measurements} measurements, the newest of {found.newest_at[:10]}, OGA {found.runtime_version}"
    return f"{', '.join(parts)} ({where}, {found.adapter})"
